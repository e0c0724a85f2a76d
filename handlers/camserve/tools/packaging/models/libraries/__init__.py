"""Models of other libraries: torchvision's, timm's and transformers' architectures, and how these prepare pictures."""
