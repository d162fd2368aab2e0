"""The rule: what kind of client a user has, as the user agent tells."""

import json
from dataclasses import dataclass


@dataclass
class Config:
    # The metadata key that the kind goes to.
    into: str = "client"


def parse(text: str) -> Config:
    """Reads a configuration. What is wrong with it is raised as a ValueError."""
    config = Config()
    for key, value in json.loads(text).items():
        if key != "into":
            raise ValueError(f"unknown key `{key}`")
        if not isinstance(value, str):
            raise ValueError("`into` must be a string")
        config.into = value
    return config


def kind(user_agent: str) -> str:
    """Browsers of phones and tablets have "Mobi" in their user agent."""
    return "mobile" if "Mobi" in user_agent else "desktop"
