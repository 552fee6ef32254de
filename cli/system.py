"""`knarr version` and `knarr info`."""

import sys
from posix import uname

from cli.client import API_VERSION, Client, Failure, Unreachable
from cli.codec import ordered_dumps
from cli.flags import Command, parse
from cli.main import VERSION
from cli.streams import output

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any

VERSION_COMMAND = Command("version", "[OPTIONS]", {"format": "string"}, {"f": "format"}, 0, 0)
INFO = Command("info", "[OPTIONS]", {"format": "string"}, {"f": "format"}, 0, 0)
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386", "riscv64": "riscv64", "ppc64le": "ppc64le",
    "s390x": "s390x"}


def client_details(client: Client) -> "dict[str, Any]":
    machine = uname().machine
    return {
        "Version": VERSION, "ApiVersion": client.version, "DefaultAPIVersion": API_VERSION, "PythonVersion": sys.version.partition(" ")[0],
        "Os": "linux", "Arch": _MACHINES.get(machine, machine), "Context": "default",
    }


def _formatted(form: str, value: "dict[str, Any]") -> str:
    if form == "json":
        return ordered_dumps(value)
    from cli.evaluate import Partial, Template
    from cli.template import TemplateError

    try:
        return Template(form).run(Partial(value, {"DefaultAddressPools": []}))
    except TemplateError as error:
        raise Failure("template parsing error: " + error.text, 64) from None


def version(client: Client, name: str, argv: "list[str]") -> int:
    """The client's half is printed also when there is no daemon."""
    given, _ = parse(VERSION_COMMAND, argv)
    failure = server = None
    try:
        server = client.get("/version")
        for component in server.get("Components") or ():
            if (component.get("Details") or {}).get("BuildTime"):
                component["Details"]["BuildTime"] = _built(component["Details"]["BuildTime"])
    except Failure as error:
        failure = error
    details = client_details(client)
    if given.get("format"):
        output(_formatted(given["format"], {"Client": details, "Server": server}) + "\n")
    else:
        output(_version_text(details, server))
    if failure is not None:
        raise failure
    return 0


def _version_text(details: "dict[str, Any]", server: "dict[str, Any] | None") -> str:
    lines = [
        "Client:", f" Version:           {details['Version']}", f" API version:       {details['ApiVersion']}",
        f" Python version:    {details['PythonVersion']}", f" OS/Arch:           {details['Os']}/{details['Arch']}",
        f" Context:           {details['Context']}",
    ]
    if server is None:
        return "\n".join(lines) + "\n"
    lines += ["", "Server:" + (f" {server['Platform']['Name']}" if (server.get("Platform") or {}).get("Name") else "")]
    for component in server.get("Components") or [{"Name": "Engine", "Version": server.get("Version", ""), "Details": server}]:
        lines.append(f" {component['Name']}:")
        lines.append(f"  Version:          {component['Version']}")
        lines += _component(component["Name"], component.get("Details") or {})
    return "\n".join(lines) + "\n"


def _component(name: str, details: "dict[str, Any]") -> "list[str]":
    if name != "Engine":
        return [f"  {key + ':':<17} {details[key]}" for key in sorted(details)]
    shown = (("API version", f"{details.get('ApiVersion', '')} (minimum version {details.get('MinAPIVersion', '')})"),
             ("Python version" if "PythonVersion" in details else "Go version", details.get("PythonVersion") or details.get("GoVersion",
                 "")),
             ("Git commit", details.get("GitCommit", "")), ("Built", _built(details.get("BuildTime", ""))),
             ("OS/Arch", f"{details.get('Os', '')}/{details.get('Arch', '')}"), ("Experimental", details.get("Experimental", "false")))
    return [f"  {label + ':':<17} {value}" for label, value in shown if value != ""]


def _built(text: str) -> str:
    """`2024-01-02T03:04:05…` as `Tue Jan  2 03:04:05 2024`; anything else as it is."""
    from _datetime import datetime  # the C half: time.strptime costs 6 ms of imports

    try:
        return str(datetime.fromisoformat(text[:19]).ctime())
    except ValueError:
        return text


def info(client: Client, name: str, argv: "list[str]") -> int:
    given, _ = parse(INFO, argv)
    failure, server = None, {}
    try:
        server = client.get("/info")
    except Unreachable as error:
        failure = error
    details = client_details(client) | {"Debug": False}
    if given.get("format"):
        output(_formatted(given["format"], server | {"ClientInfo": details}) + "\n")
    else:
        head = f"Client:\n Version:    {VERSION}\n Context:    default\n Debug Mode: false\n\nServer:\n"
        output(head + (_info_text(server) if server else ""))
        for warning in server.get("Warnings") or ():
            sys.stderr.write(warning + "\n")
    if failure is not None:
        raise failure
    return 0


def _info_text(info: "dict[str, Any]") -> str:
    from cli.tables import binary_size

    lines = [
        f"Containers: {info['Containers']}", f" Running: {info['ContainersRunning']}", f" Paused: {info['ContainersPaused']}",
        f" Stopped: {info['ContainersStopped']}", f"Images: {info['Images']}", f"Server Version: {info['ServerVersion']}",
        f"Storage Driver: {info['Driver']}", *(f" {key}: {value}" for key, value in info.get("DriverStatus") or ()),
        f"Logging Driver: {info['LoggingDriver']}", f"Cgroup Driver: {info['CgroupDriver']}",
    ]
    if info.get("CgroupVersion"):
        lines.append(f"Cgroup Version: {info['CgroupVersion']}")
    plugins = info.get("Plugins") or {}
    lines += ["Plugins:", *(f" {key}: {' '.join(plugins[key])}" for key in ("Volume", "Network", "Authorization",
        "Log") if plugins.get(key))]
    if info.get("CDISpecDirs"):
        lines += ["CDI spec directories:", *(f" {folder}" for folder in info["CDISpecDirs"])]
    if info.get("Swarm"):
        lines.append(f"Swarm: {info['Swarm'].get('LocalNodeState') or 'inactive'}")
    lines += _runtime_lines(info)
    lines += [
        f"Kernel Version: {info['KernelVersion']}", f"Operating System: {info['OperatingSystem']}", f"OSType: {info['OSType']}",
        f"Architecture: {info['Architecture']}", f"CPUs: {info['NCPU']}", f"Total Memory: {binary_size(info['MemTotal'])}",
        f"Name: {info['Name']}",
        f"ID: {info['ID']}", f"Docker Root Dir: {info['DockerRootDir']}", f"Debug Mode: {str(info.get('Debug', False)).lower()}",
    ]
    if info.get("Labels"):
        lines += ["Labels:", *(f" {label}" for label in info["Labels"])]
    lines.append(f"Experimental: {str(info.get('ExperimentalBuild', False)).lower()}")
    registries = (info.get("RegistryConfig") or {}).get("InsecureRegistryCIDRs")
    if registries:
        lines += ["Insecure Registries:", *(f" {entry}" for entry in registries)]
    lines.append(f"Live Restore Enabled: {str(info.get('LiveRestoreEnabled', False)).lower()}")
    if info.get("ProductLicense"):
        lines.append(f"Product License: {info['ProductLicense']}")
    return "".join(f" {line}\n" for line in lines) + "\n"


def _runtime_lines(info: "dict[str, Any]") -> "list[str]":
    lines = []
    if info.get("Runtimes"):
        lines += ["Runtimes: " + " ".join(info["Runtimes"]), f"Default Runtime: {info.get('DefaultRuntime', '')}"]
    for label, value in (("Init Binary", info.get("InitBinary")), ("containerd version", (info.get("ContainerdCommit") or {}).get("ID")),
                         ("runc version", (info.get("RuncCommit") or {}).get("ID")), ("init version",
                             (info.get("InitCommit") or {}).get("ID"))):
        if value is not None:
            lines.append(f"{label}: {value}")
    if info.get("SecurityOptions"):
        lines.append("Security Options:")
        for option in info["SecurityOptions"]:
            fields = dict(field.partition("=")[::2] for field in option.split(","))
            lines.append(f" {fields.pop('name', option)}")
            lines += [f"  {key.capitalize()}: {value}" for key, value in fields.items()]
    return lines


