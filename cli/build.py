"""`knarr build`: sends what a Dockerfile needs, shows how its build goes, takes what comes out of it.

Flags are `cli/buildflags.py`'s, files `buildsources`', the connection `buildsession`'s, what is shown `buildprogress`', and what is left
`buildoutput`'s. Here is the order of it all, and the words of its end.
"""

import time

from cli import buildflags, buildprogress
from cli.buildflags import BUILD, Plan, refuse
from cli.buildsession import Broken, Session
from cli.buildsources import Sources
from cli.client import Client, Connection, DaemonError, Failure
from cli.flags import parse
from cli.streams import output, write_all

TYPE_CHECKING = False  # typing itself costs 5 ms
if TYPE_CHECKING:
    from typing import Any


def build(client: Client, name: str, argv: "list[str]") -> int:
    given, (place,) = parse(BUILD.named(name), argv)
    plan = buildflags.plan(given)
    began = time.monotonic()
    sources = Sources(plan, place)
    if plan.iidfile or plan.metadata:
        from cli.buildoutput import remove_stale

        remove_stale(plan.iidfile)
        remove_stale(plan.metadata)
    printer = buildprogress.chosen(plan.progress, 2)
    connection = client.connect()
    client.send(connection, "POST", "/build/knarr", None, "Connection: Upgrade\r\nUpgrade: knarr-build\r\n")
    from cli import buildsecrets

    request: dict[str, Any] = {"options": plan.options, "contexts": sources.names()}
    if plan.secrets:
        request["secrets"] = buildsecrets.secrets(plan)
        plan.options["secrets"] = list(request["secrets"])
    if auth := buildsecrets.configured(client, plan.options, sources.text):
        request["auth"] = auth
    agents = buildsecrets.agents(plan)
    try:
        _upgraded(client, connection)
        session = Session(connection, sources, printer, agents)
        result = _run(session, request, sources)
    finally:
        agents.close()
    if plan.debug:
        _debug(session)
    return _finish(plan, sources, printer, result, time.monotonic() - began)


def _upgraded(client: Client, connection: Connection) -> None:
    try:
        status = client.answer(connection, "POST", "/build/knarr", None, "Connection: Upgrade\r\nUpgrade: knarr-build\r\n").status
    except DaemonError as error:
        if error.status == 404:
            raise refuse(f"the daemon at {client.host.url} is none of Knarr's: it does not know how to build for this client "
                f"({error.message})") from None
        raise
    if status != 101:
        raise refuse(f"the daemon at {client.host.url} answered {status} and no connection for a build")


def _run(session: Session, request: "dict[str, Any]", sources: Sources) -> "dict[str, Any]":
    """The build from its request to its result, with its error put into words. Raises Failure."""
    printer = session.printer
    try:
        session.begin(request, sources.manifests())
        result = session.run()
        printer.close()
        return result
    except Broken as broken:
        printer.close()
        if session.wakes.stopped:
            raise Failure("ERROR: failed to solve: Canceled: context canceled", 128 + session.wakes.stopped) from None
        message = "failed to solve: " + buildprogress.printable(broken.message.removeprefix("failed to solve: "))
        most = buildprogress.TAIL if isinstance(printer, buildprogress.Plain) else buildprogress.KEPT
        tail = buildprogress.failures(printer.state, most) if sources.plan.progress != "rawjson" else ""
        excerpt = broken.excerpt.rstrip("\n") + "\n" if broken.excerpt else ""
        write_all(2, (tail + excerpt).encode("utf-8", "surrogateescape"))
        raise refuse(message) from None
    except Failure as failure:
        printer.close()
        if failure.text.startswith("error from sender: "):
            raise refuse(f"failed to solve: {failure.text}") from None
        if not failure.text.startswith("ERROR: "):
            raise Failure(f"ERROR: {failure.text}", failure.code) from None
        raise


def _debug(session: Session) -> None:
    for name, manifest in zip(session.names, session.manifests, strict=False):
        write_all(2, f"DEBUG: context {name}: {manifest.files} files, {buildprogress.units(manifest.size)}\n".encode())
    write_all(2, f"DEBUG: sent {buildprogress.units(session.sent)} of files\n".encode())


def _finish(plan: Plan, sources: Sources, printer: buildprogress.Printer, result: "dict[str, Any]", seconds: float) -> int:
    """Everything below the progress: warnings, summary, files, what goes to stdout; the exit status."""
    called = plan.options.get("call", "build") != "build"
    loud = plan.progress not in ("quiet", "rawjson")
    if loud and not called:
        text = buildprogress.warnings(printer.state.warnings, sources.text, plan.debug)
        lines = buildprogress.summary(printer.state, result, seconds, plan.options.get("tags", []))
        printer.say(text + ("\n" if isinstance(printer, buildprogress.Plain) or text else "") + "".join(f"{line}\n" for line in lines))
    if plan.iidfile and result.get("image"):
        from cli.buildoutput import write_iidfile

        write_iidfile(plan.iidfile, result["image"])
    if plan.metadata:
        from cli.buildoutput import write_metadata

        write_metadata(plan.metadata, result, plan.options)
    if called:
        return _answer(plan, result)
    if plan.quiet and result.get("image"):
        output(result["image"] + "\n")
    return 0


def _answer(plan: Plan, result: "dict[str, Any]") -> int:
    """What a call other than build says."""
    if plan.json:
        from cli.codec import indent, ordered_dumps

        output(indent(ordered_dumps(result.get("answer")), "  ") + "\n")
    elif text := result.get("text"):
        # Comments of a Dockerfile are in it, which may be somebody else's.
        output("".join(buildprogress.printable(line.expandtabs()) + "\n" for line in text.rstrip("\n").split("\n")))
    return 0 if plan.ignore_status else int(result.get("code") or 0)
