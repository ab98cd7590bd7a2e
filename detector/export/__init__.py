"""A model as one file that other programs run: ONNX in float, INT8 or FP16, and torch's own format."""
