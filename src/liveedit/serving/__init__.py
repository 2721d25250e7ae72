"""The HTTP service of one model: OpenAI's chat protocol for questions, `/v1/edits` for corrections."""
