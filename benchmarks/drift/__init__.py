"""How well drift is told from chance, and pictures to try it with."""
