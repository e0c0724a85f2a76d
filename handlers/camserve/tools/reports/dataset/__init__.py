"""Whole data sets: each picture a row of Parquet, by as many workers as there are, in jobs that can be killed and go on."""
