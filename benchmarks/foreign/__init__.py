"""Classifiers of other libraries: which layer is explained, what goes past it, where its cells lie, how exact its maps are."""
