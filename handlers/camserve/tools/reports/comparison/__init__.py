"""Two models on the same pictures: do they predict the same, and look at the same places?"""
