"""A search for better settings with Optuna (pip install optuna): each trial is a run, and the best ones guide the next.

    python examples/sweep.py --config finetune.yaml --trials 20 data.train=boxes.csv data.val_share=0.2
    detector runs --runs sweep --sort best

The same command continues: also a trial that was stopped, from its run's last checkpoint. Several processes may run it
at once; machines need the folder and a storage that they share, such as --storage postgresql://…
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import optuna
from optuna.trial import TrialState

import detector


def suggest(trial: optuna.Trial) -> dict[str, object]:
    """What is searched: change this to your own."""
    return {
        "train.optimizer.lr": trial.suggest_float("train.optimizer.lr", 1e-4, 1e-2, log=True),
        "train.optimizer.weight_decay": trial.suggest_float("train.optimizer.weight_decay", 1e-5, 1e-2, log=True),
        "model.matcher.name": trial.suggest_categorical("model.matcher.name", ["max_iou", "atss"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--runs", type=Path, default=Path("sweep"))
    parser.add_argument("--trials", type=int, default=20, help="of all, finished ones included")
    parser.add_argument("--storage", help="of Optuna (default: sqlite:///RUNS/optuna.db)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    args.runs.mkdir(exist_ok=True)

    def objective(trial: optuna.Trial) -> float:
        changed = [f"{key}={value}" for key, value in suggest(trial).items()]
        # Named by what it tries, so a trial that is tried again continues its run.
        name = hashlib.sha256(" ".join(changed).encode()).hexdigest()[:10]
        trial.set_user_attr("run", name)
        run = detector.train(args.config, [*args.overrides, *changed], name=name, runs=args.runs, resume=True)
        return json.loads((run / "results.json").read_text())["best"]

    # A process that dies leaves its trial running; without a heartbeat for three minutes, it has failed.
    url = args.storage or f"sqlite:///{args.runs}/optuna.db"
    storage = optuna.storages.RDBStorage(url, heartbeat_interval=60, grace_period=180)
    study = optuna.create_study(
        storage=storage, study_name=Path(args.config).stem, direction="maximize", load_if_exists=True
    )
    optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    taken = [trial.params for trial in trials if trial.state != TrialState.FAIL]
    for trial in trials:
        if trial.params not in taken:
            taken.append(trial.params)
            study.enqueue_trial(trial.params)
    if sum(trial.state == TrialState.COMPLETE for trial in trials) < args.trials:
        enough = optuna.study.MaxTrialsCallback(args.trials, states=(TrialState.COMPLETE,))
        study.optimize(objective, callbacks=[enough])
    best = study.best_trial
    print(f"best: {best.value:.4f} by {args.runs / best.user_attrs['run']}")
    for key, value in best.params.items():
        print(f"  {key}={value}")


if __name__ == "__main__":
    main()
