"""The words that every room speaks: settings, classes, errors, rectangles, requests, answers, limits. No torch, no I/O."""
