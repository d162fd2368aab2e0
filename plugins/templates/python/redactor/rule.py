"""The rule: a user's contacts get more of the metadata than others do."""

import json
from dataclasses import dataclass, field


@dataclass
class Config:
    """The metadata keys that viewers get."""

    contacts: list[str] = field(default_factory=lambda: ["device", "location"])
    others: list[str] = field(default_factory=lambda: ["device"])


def parse(text: str) -> Config:
    """Reads a configuration. What is wrong with it is raised as a ValueError."""
    config = Config()
    for key, value in json.loads(text).items():
        if key not in ("contacts", "others"):
            raise ValueError(f"unknown key `{key}`")
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"`{key}` must be a list of strings")
        setattr(config, key, value)
    return config
