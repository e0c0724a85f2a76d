"""Requests and answers on the wire: plain, KServe V1 and Open Inference Protocol V2."""
