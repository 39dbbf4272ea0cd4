"""The transports, found by name; a protocol's modules are imported only when a stream uses it."""

from __future__ import annotations

from importlib import import_module

from mistamover.errors import ConfigError
from mistamover.transports.contract import Transport

GROUP = "mistamover.transports"
"""The entry-point group by which other projects add transports."""

_BUILT_IN = {
    "local": "mistamover.transports.local:Local",
    "sftp": "mistamover.transports.sftp:Sftp",
    "rsync_ssh": "mistamover.transports.rsync_ways:RsyncSsh",
    "rsync_native": "mistamover.transports.rsync_ways:RsyncNative",
    "ftp": "mistamover.transports.ftp:Ftp",
    "ftps": "mistamover.transports.ftp:Ftps",
}


def transport_class(name: str) -> type[Transport]:
    """The transport of that name; ours first."""
    if name in _BUILT_IN:
        module, _, attribute = _BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    else:
        from importlib.metadata import entry_points  # slow to import, and seldom needed

        entries = entry_points(group=GROUP, name=name)
        found = next(iter(entries)).load() if entries else None
    if not (isinstance(found, type) and issubclass(found, Transport)):
        raise ConfigError([f"[outgoing] transfer_protocol: there is no transport {name!r}"])
    return found
