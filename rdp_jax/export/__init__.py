"""Networks as ONNX files: `convert` writes them, `session` runs them.  Needs the extra `deploy`."""
