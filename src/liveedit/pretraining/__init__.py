"""The built-in backbones: transformers' LLaVA and BLIP-2 in small, pretrained from scratch on the drawn world."""
