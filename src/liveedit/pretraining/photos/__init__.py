"""`smol-llava`: a vision-language model of two pretrained parts, joined by training on photographs."""
