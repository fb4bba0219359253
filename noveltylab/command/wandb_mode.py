"""Whether a W&B run goes to the server or stays on disk, found without W&B, which may prompt.

Asking W&B itself for its key would fix its settings for the whole process, before a mode is chosen.
"""

import configparser
import netrc
import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from noveltylab.errors import UserError

Mode = Literal["online", "offline", "disabled"]
#: What WANDB_MODE may say (two of them are W&B's old words), and what it means.
MODES: dict[str, Mode] = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
#: Servers of W&B itself; a server of one's own is named by WANDB_BASE_URL or by `wandb login
#: --host`.
HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


def wandb_mode(logger_mode: str) -> Mode:
    """The mode of a run with `logger=wandb`.

    Args:
        logger_mode: `logger.mode`. "auto" is what WANDB_MODE or `wandb offline` says, else online where
            a key is configured.

    Raises:
        UserError: WANDB_MODE says nothing or nonsense; online is asked for and no key, or a wrong
        one, is configured.
    """
    settings = _settings()
    # what the environment or W&B's own settings say
    setting = _checked("WANDB_MODE", os.environ.get("WANDB_MODE"))
    setting = setting or _checked("the setting mode of `wandb`", settings.get("mode"))
    # else online if there is a key
    key = _key(settings)
    mode = setting or ("offline" if key is None else "online")
    # logger.mode has the last word
    if logger_mode != "auto":
        mode = MODES[logger_mode]
    if mode == "online":
        _check_key(key, "logger.mode" if logger_mode == "online" else "WANDB_MODE")
    return mode


def _checked(name: str, value: str | None) -> Mode | None:
    if value is None:
        return None
    if value not in MODES:
        mistake = f"{name}={value}" if value.strip() else f"{name} is empty"
        raise UserError(
            f"{mistake}: W&B knows online, offline and disabled; set one of them, or unset {name}"
        )
    return MODES[value]


def _check_key(key: str | None, asked_by: str) -> None:
    if key is None:
        raise UserError(
            f"{asked_by}=online: no key of W&B is configured; `wandb login` keeps one, WANDB_API_KEY names one, "
            "logger.mode=offline keeps the run on disk"
        )
    if key and not re.fullmatch(r"[\w.-]{40,}", key):
        raise UserError(
            "the configured key of W&B is none: it has 40 or more letters and digits; `wandb login` keeps a new one, "
            "logger.mode=offline keeps the run on disk"
        )


def _key(settings: dict[str, str]) -> str | None:
    """The key as W&B would find it: environment, netrc, settings.

    "" for a token in a file, None for no key.
    """
    key = os.environ.get("WANDB_API_KEY")
    if key:
        return key
    if os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return ""
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url", ""))
    return (
        _netrc_password((server.netloc,) if server.netloc else HOSTS)
        or settings.get("api_key")
        or None
    )


def _netrc_password(hosts: tuple[str, ...]) -> str | None:
    try:
        netrc_file = os.environ.get("NETRC")
        files = [Path(netrc_file)] if netrc_file else [Path("~/.netrc"), Path("~/_netrc")]
        path = next(path for path in (file.expanduser() for file in files) if path.is_file())
        entries = netrc.netrc(path)
        return next(entry[2] for host in hosts if (entry := entries.authenticators(host)))
    except (OSError, RuntimeError, StopIteration, UnicodeDecodeError, netrc.NetrcParseError):
        return None  # no file, none that can be read, or no entry


def _settings() -> dict[str, str]:
    """Settings that `wandb login --host`, `wandb offline` and the like have kept here."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        user = (
            Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser() / "settings"
        )
        parser.read(
            [user, Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"],
            encoding="utf-8",
        )
        return dict(parser["default"]) if parser.has_section("default") else {}
    except (configparser.Error, RuntimeError, UnicodeDecodeError, OSError):
        return {}
