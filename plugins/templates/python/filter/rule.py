"""The rule: while a user is quiet, only their contacts may see them."""

import json
from dataclasses import dataclass


@dataclass
class Config:
    # The `status` in a user's metadata that means quiet.
    status: str = "quiet"


def parse(text: str) -> Config:
    """Reads a configuration. What is wrong with it is raised as a ValueError."""
    config = Config()
    for key, value in json.loads(text).items():
        if key != "status":
            raise ValueError(f"unknown key `{key}`")
        if not isinstance(value, str):
            raise ValueError("`status` must be a string")
        config.status = value
    return config


def is_quiet(config: Config, status: str | None) -> bool:
    """Whether only contacts may see a user with this status."""
    return status == config.status
