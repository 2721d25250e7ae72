"""The built-in backbones: transformers' small versions of LLaVA, BLIP-2, Llama and Mistral, pretrained from scratch."""
