"""Which layer is explained by default, and where its gradients have a closed form."""
