# detector serve on a CPU:
#   docker build --tag detector .
#   docker run --rm --publish 8000:8000 --volume "$PWD/runs/mine:/model:ro" --env DETECTOR_TOKEN detector
# Other options of `detector serve` come last: ... detector --checkpoint /model/last.pt --host 0.0.0.0 --queue 128
FROM python:3.12-slim

# torch's own index has builds without CUDA: 0.2 instead of 5 GB.
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY detector detector
RUN pip install --no-cache-dir ".[serve]" && rm -rf /build

RUN useradd --create-home detector
USER detector
WORKDIR /home/detector
EXPOSE 8000
HEALTHCHECK --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["detector", "serve"]
CMD ["--checkpoint", "/model", "--host", "0.0.0.0"]
