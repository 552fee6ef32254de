"""How a container's log is written: --log-opt as the monitor understands it. Pure."""

from __future__ import annotations

import msgspec

from engine.config import DEFAULT_LOG_MAX_FILES, DEFAULT_LOG_MAX_SIZE
from engine.errors import InvalidParameter
from engine.service.container import Container
from engine.spec.units import decimal_bytes
from engine.wire import control


def log_settings(container: Container) -> control.LogSettings | None:
    """How the monitor writes the container's log; None for the driver "none"."""
    record = container.record
    chosen = record.host_config.log_config
    if not record.log_path:
        return None
    options = (chosen.config if chosen else None) or {}
    size = options.get("max-size", "")
    return control.LogSettings(
        path=record.log_path,
        max_size=0 if size == "-1" else decimal_bytes(size) if size else DEFAULT_LOG_MAX_SIZE,
        max_files=int(options.get("max-file", DEFAULT_LOG_MAX_FILES)),
        attrs=_log_attributes(container, options),
    )


def _log_attributes(container: Container, options: dict[str, str]) -> bytes:
    """Docker's `attrs`: labels and variables that --log-opt labels/env name, and the tag."""
    record = container.record
    found: dict[str, str] = {}
    labels = record.config.labels or {}
    for name in filter(None, options.get("labels", "").split(",")):
        if name in labels:
            found[name] = labels[name]
    env = dict(entry.partition("=")[::2] for entry in record.config.env or ())
    for name in filter(None, options.get("env", "").split(",")):
        if name in env:
            found[name] = env[name]
    if options.get("tag"):
        found["tag"] = log_tag(options["tag"], record.id, record.name, record.image, record.image_id)
    return msgspec.json.encode(found, order="sorted") if found else b""


def log_tag(template: str, container_id: str, name: str, image: str, image_id: str) -> str:
    """Docker's log tag template with the fields that its reference lists. Raises InvalidParameter for anything else."""
    values = {
        "ID": container_id[:12], "FullID": container_id, "Name": name, "ImageName": image, "ImageID": image_id.removeprefix("sha256:")[:12],
        "ImageFullID": image_id, "DaemonName": "knarr",
    }  # fmt: skip
    result = template
    for key, value in values.items():
        for form in (f"{{{{.{key}}}}}", f"{{{{ .{key} }}}}"):
            result = result.replace(form, value)
    if "{{" in result:
        raise InvalidParameter(f"invalid log tag '{template}': only {', '.join(values)} are known")
    return result
