"""The built-in backbone: transformers' LLaVA in small, pretrained from scratch on the drawn world."""
