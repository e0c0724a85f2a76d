"""The words that every room speaks: settings, classes, errors, rectangles, requests, answers. No torch, no I/O."""
