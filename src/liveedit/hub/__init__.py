"""The hub: repositories of editors and edits, reached through `huggingface_hub`, and the cards in them."""
