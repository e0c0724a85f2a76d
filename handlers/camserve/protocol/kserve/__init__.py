"""KServe's V1 and the Open Inference Protocol V2, with its binary extension."""
