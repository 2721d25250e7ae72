"""What is pushed into repositories of a hub."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelHubMixin

from .repositories import check_token, hub_errors


class Pushable(ModelHubMixin):
    """A `ModelHubMixin` whose card names its repository, and whose errors say in one sentence what is wrong."""

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Save into a repository, which is created if it does not exist. Returns the address of the commit.

        options: of `ModelHubMixin.push_to_hub` (private, branch, commit_message, token); `model_card_kwargs` are the
        arguments of `generate_model_card`. Raises `HubError`.
        """
        check_token(options.get("token"))
        named = {"repo_id": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        with hub_errors(repo_id):
            return super().push_to_hub(repo_id, model_card_kwargs=named, **options)
