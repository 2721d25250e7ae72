"""The edit service: one model behind HTTP, asked by OpenAI's protocol and corrected by `/v1/edits`."""
