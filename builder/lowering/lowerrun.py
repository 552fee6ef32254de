"""RUN: the command line, its environment, its mounts. Pure."""

from __future__ import annotations

import posixpath

from builder.graph import Mount
from builder.graph import Run as RunOp
from builder.language import platformargs
from builder.language.instructions import Run
from builder.language.lines import heredoc
from builder.language.runmount import RunMount, parse_mount
from builder.lowering.evaluate import Fault, below
from builder.lowering.stages import Needed, Node, check_dependency
from builder.lowering.state import Inputs, Lowering, State, run_text
from engine.errors import NotImplementedYet

_SCRIPTS = "/dev/pipes/"
_AGENT = "SSH_AUTH_SOCK"
_MODES = {"cache": 0o755, "secret": 0o400, "ssh": 0o600}
_SUMMARY = 200


def run(lowering: Lowering, state: State, needed: Needed, instruction: Run) -> None:
    """RUN. Raises InvalidParameter, NotImplementedYet, SubstitutionError."""
    args, files, summary = _command(state, instruction)
    inputs = Inputs(state.root)
    mounts = _Mounts(lowering, state, needed, inputs).all(instruction)
    env = state.environment
    sockets = [mount.target for mount in mounts if mount.kind == "ssh"]
    if sockets and _AGENT not in state.env:
        env = (*env, f"{_AGENT}={sockets[0]}")
    proxies = tuple(entry for entry in lowering.proxies if entry.partition("=")[0] not in state.env)
    op = RunOp(
        args=args,
        env=env,
        cwd=state.defaults.working_dir or "/",
        user=state.defaults.user,
        mounts=tuple(mounts),
        network=_network(lowering, instruction),
        security=_security(lowering, instruction),
        hosts=lowering.hosts,
        hostname=lowering.arguments.get(platformargs.HOSTNAME, ""),
        proxies=proxies,
        files=files,
    )
    hidden = {mount.env: "****" for mount in mounts if mount.env}
    masked = {**state.env, **hidden} if hidden else state.env
    shown = lowering.evaluator.shown(instruction.text + summary, masked, as_written=True)
    name = lowering.named(state, shown, trigger=needed.trigger)
    vertex = state.root = lowering.vertex(state, needed, op, inputs.all, name)
    lowering.commit(state, needed, run_text(args, state.args, state.env) + " # buildkit", vertex)


def _command(state: State, instruction: Run) -> tuple[tuple[str, ...], tuple[tuple[str, bytes], ...], str]:
    """The words to execute, the scripts that they need, and what the name says of a document."""
    words = instruction.command.words
    files: tuple[tuple[str, bytes], ...] = ()
    summary = ""
    if instruction.heredocs and instruction.command.shell:
        document = instruction.heredocs[0]
        if len(words) == 1 and heredoc(words[0].strip()) is not None:
            # The document alone is what to do: a script with its own interpreter, or text for the shell.
            if document.content.startswith("#!"):
                path = _SCRIPTS + document.name.replace("/", "_")
                files = ((path, document.content.encode("utf-8", "surrogateescape")),)
                words = (path,)
            else:
                words = (document.content,)
            summary = f" ({_summary(document.content)})"
        else:
            # The shell knows documents itself.
            words = ("\n".join([*words, *(one.content + one.name for one in instruction.heredocs)]),)
    args = state.with_shell(words) if instruction.command.shell else words
    if not args or not args[0]:
        raise Fault("RUN needs a command to execute")
    return args, files, summary


def _summary(content: str) -> str:
    first, *rest = content.strip().replace("\r\n", "\n").split("\n")
    return first[:_SUMMARY] + ("..." if rest or len(first) > _SUMMARY else "")


def _network(lowering: Lowering, instruction: Run) -> str:
    """The network of one RUN: its own choice, or that of the build."""
    of_build = network_mode(lowering.options.network)
    network = network_mode(instruction.network) if instruction.network else of_build
    if network == "host" and of_build != "host":
        _entitled(lowering, "network.host", instruction.network)
    return network


def network_mode(text: str) -> str:
    """`--network` of a build: default, none, host, or the name of a network, which the classic builder has always taken. Raises
    NotImplementedYet for the network of a container."""
    if text in ("", "default", "bridge", "sandbox"):
        return "default"
    if text.startswith("container:"):
        raise NotImplementedYet("--network container of a build", hint="give it the network that the container is in")
    return text


def _security(lowering: Lowering, instruction: Run) -> str:
    security = instruction.security or "sandbox"
    if security == "insecure":
        _entitled(lowering, "security.insecure", security)
    if instruction.devices:
        _entitled(lowering, "device", instruction.devices[0])
        raise NotImplementedYet("RUN --device")
    return security


def _entitled(lowering: Lowering, entitlement: str, word: str) -> None:
    """Raises Fault unless the build may."""
    allowed = lowering.options.allow
    if entitlement not in allowed and not any(one.startswith(entitlement + "=") for one in allowed):
        raise Fault(f"{entitlement} is not allowed", word=word, hint=f"build with --allow {entitlement}")


class _Mounts:
    """The mounts of one RUN."""

    def __init__(self, lowering: Lowering, state: State, needed: Needed, inputs: Inputs) -> None:
        self.lowering = lowering
        self.state = state
        self.needed = needed
        self.inputs = inputs
        self.agents = 0

    def all(self, instruction: Run) -> list[Mount]:
        """All of them, complete. Raises Fault."""
        sources = self.needed.sources or (None,) * len(instruction.mounts)
        return [self.mount(text, source) for text, source in zip(instruction.mounts, sources, strict=True)]

    def mount(self, text: str, source: Node | None) -> Mount:
        try:
            asked = parse_mount(text, lambda value: self.lowering.word(self.state, value))
        except ValueError as error:
            raise Fault(str(error), word=text) from None
        if asked.type == "secret":
            return self.secret(asked)
        if asked.type == "ssh":
            return self.agent(asked)
        target = below(self.state.defaults.working_dir, asked.target) if asked.target else "/"
        if target == "/":
            raise Fault(f'invalid mount target "{asked.target or target}"', word=text, hint="" if asked.target else "target= is required")
        if asked.type == "tmpfs":
            return Mount(kind="tmpfs", target=target, readonly=asked.readonly, size=asked.size)
        place = -1
        if source is not None:
            message = f'cannot mount from stage "{asked.from_}" to "{asked.target}", stage needs to be defined before current command'
            check_dependency(self.state.node, source, message)
            place = self.inputs.place(self.lowering.states[source.number].source)
        elif asked.type == "bind":
            place = self.inputs.place(self.lowering.vertices.context())
        path = below("/", asked.source)
        if asked.type == "bind":
            return Mount(kind="bind", target=target, input=place, source=path, readonly=asked.readonly)
        namespace = self.lowering.arguments.get(platformargs.CACHE_NAMESPACE, "")
        return Mount(
            kind="cache",
            target=target,
            input=place,
            source=path,
            readonly=asked.readonly,
            id=f"{namespace}/{asked.id or posixpath.normpath(asked.target)}",
            sharing=asked.sharing or "shared",
            mode=_mode(asked),
            uid=asked.uid or 0,
            gid=asked.gid or 0,
        )

    def secret(self, asked: RunMount) -> Mount:
        """Its identifier is the last part of the target's path when it is not given, and the target follows from the identifier."""
        id = asked.source or asked.id or posixpath.basename(asked.target.rstrip("/"))
        if not id:
            raise Fault("one of source, target required")
        target = asked.target
        if not target and not asked.env:
            target = "/run/secrets/" + posixpath.basename(id.rstrip("/"))
        return Mount(
            kind="secret",
            target=self.path(target) if target else "",
            id=id,
            required=asked.required,
            env=asked.env,
            readonly=True,
            mode=_mode(asked),
            uid=asked.uid or 0,
            gid=asked.gid or 0,
        )

    def agent(self, asked: RunMount) -> Mount:
        """A socket of an ssh agent; those without a target are numbered among all."""
        if asked.source:
            raise Fault("ssh does not support source", word=asked.source)
        target = asked.target or f"/run/buildkit/ssh_agent.{self.agents}"
        self.agents += 1
        return Mount(
            kind="ssh",
            target=self.path(target),
            id=asked.id or "default",
            required=asked.required,
            mode=_mode(asked),
            uid=asked.uid or 0,
            gid=asked.gid or 0,
        )

    def path(self, target: str) -> str:
        path = below(self.state.defaults.working_dir, target)
        if path == "/":
            raise Fault(f'invalid mount target "{target}"', word=target)
        return path


def _mode(asked: RunMount) -> int:
    return _MODES[asked.type] if asked.mode is None else asked.mode & 0o7777
