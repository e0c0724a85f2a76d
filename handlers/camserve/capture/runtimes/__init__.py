"""Runtimes other than eager torch that compute the trunk: what they give, the head behind it, and whether they agree."""
