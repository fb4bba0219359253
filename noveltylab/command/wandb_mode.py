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
        logger_mode: `logger.mode`. "auto" is what WANDB_MODE or `wandb offline` says, else online
            where a key is configured.

    Raises:
        UserError: WANDB_MODE says nothing or nonsense; online is asked for and no key, or a wrong
        one, is configured.
    """
    settings = _settings()
    # online if there is a key
    key = _key(settings)
    mode: Mode = "offline" if key is None else "online"
    # unless the environment or W&B's own settings say otherwise
    setting = _checked("WANDB_MODE", os.environ.get("WANDB_MODE"))
    setting = setting or _checked("the setting mode of `wandb`", settings.get("mode"))
    if setting is not None:
        mode = setting
    # logger.mode has the last word
    asked_by = "WANDB_MODE"
    if logger_mode != "auto":
        mode = MODES[logger_mode]
        asked_by = "logger.mode"
    if mode == "online":
        _check_key(key, asked_by)
    return mode


def _checked(name: str, value: str | None) -> Mode | None:
    if value is None:
        return None
    if value not in MODES:
        mistake = f"{name}={value}"
        if not value.strip():
            mistake = f"{name} is empty"
        raise UserError(
            f"{mistake}: W&B knows online, offline and disabled; set one of them, or unset {name}"
        )
    return MODES[value]


def _check_key(key: str | None, asked_by: str) -> None:
    if key is None:
        raise UserError(
            f"{asked_by}=online: no key of W&B is configured; `wandb login` keeps one, "
            "WANDB_API_KEY names one, logger.mode=offline keeps the run on disk"
        )
    if key and not re.fullmatch(r"[\w.-]{40,}", key):
        raise UserError(
            "the configured key of W&B is none: it has 40 or more letters and digits; "
            "`wandb login` keeps a new one, logger.mode=offline keeps the run on disk"
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
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url", "")).netloc
    hosts = (server,) if server else HOSTS
    return _netrc_password(hosts) or settings.get("api_key") or None


def _netrc_password(hosts: tuple[str, ...]) -> str | None:
    """The password of the first of these hosts in the netrc file; None without one."""
    typed = os.environ.get("NETRC")
    candidates = [typed] if typed else ["~/.netrc", "~/_netrc"]
    try:
        files = [path for path in candidates if Path(path).expanduser().is_file()]
        if not files:
            return None
        entries = netrc.netrc(Path(files[0]).expanduser())
    except (OSError, RuntimeError, UnicodeDecodeError, netrc.NetrcParseError):
        return None  # it cannot be read
    for host in hosts:
        entry = entries.authenticators(host)
        if entry:
            return entry[2]
    return None


def _settings() -> dict[str, str]:
    """Settings that `wandb login --host`, `wandb offline` and the like have kept here."""
    parser = configparser.ConfigParser(interpolation=None)
    user_folder = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb")
    run_folder = Path(os.environ.get("WANDB_DIR") or ".", "wandb")
    try:
        files = [user_folder.expanduser() / "settings", run_folder / "settings"]
        parser.read(files, encoding="utf-8")
        if parser.has_section("default"):
            return dict(parser["default"])
    except (configparser.Error, RuntimeError, UnicodeDecodeError, OSError):
        pass  # as without settings
    return {}
