"""Instructions that make no layer: what they change of an image's configuration and of the stages' variables, and their history. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from builder.language import goformat
from builder.language.durations import nanoseconds
from builder.language.instructions import (
    Arg,
    Cmd,
    Command,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    OnBuild,
    Shell,
    StopSignal,
    User,
    Volume,
)
from builder.language.platformargs import NOT_IN_ENVIRONMENT
from builder.lowering.evaluate import Fault, exposed
from builder.lowering.stages import Needed
from builder.lowering.state import Lowering, State, command_text
from engine.linux.signals import signal_number
from engine.spec.image import Healthcheck as HealthcheckConfig


def apply(lowering: Lowering, state: State, needed: Needed) -> bool:
    """Apply an instruction; False when it is not one of these. Raises InvalidParameter, SubstitutionError."""
    handler = _HANDLERS.get(type(needed.instruction))
    if handler is None:
        return False
    handler(lowering, state, needed, needed.instruction)
    return True


def _env(lowering: Lowering, state: State, needed: Needed, instruction: Env) -> None:
    # All values are read before the first one is set: an ENV does not see itself.
    pairs = _pairs(lowering, state, instruction)
    for key, value in pairs:
        state.set_variable(key, value)
    state.collect("env", dict(pairs))
    lowering.commit(state, needed, " ".join(["ENV", *(f"{key}={value}" for key, value in pairs)]))


def _pairs(lowering: Lowering, state: State, instruction: Env | Label) -> list[tuple[str, str]]:
    pairs = [(lowering.word(state, key), lowering.word(state, value)) for key, value in instruction.pairs]
    if not all(key for key, _ in pairs):
        raise Fault(f"{type(instruction).__name__.upper()} names can not be blank")
    return pairs


def _label(lowering: Lowering, state: State, needed: Needed, instruction: Label) -> None:
    pairs = _pairs(lowering, state, instruction)
    state.collect("labels", dict(pairs))
    lowering.commit(state, needed, " ".join(["LABEL", *(f"{key}={value}" for key, value in pairs)]))


def _arg(lowering: Lowering, state: State, needed: Needed, instruction: Arg) -> None:
    written: list[str] = []
    for name, default in instruction.arguments:
        lowering.stages.used.add(name)
        given = lowering.arguments.get(name)
        if default is not None:
            try:
                default = lowering.word(state, default)
            except ValueError:
                if given is None:
                    raise
        value = given if given is not None else default if default is not None else lowering.stages.globals.get(name)
        if value is not None and name not in NOT_IN_ENVIRONMENT:
            state.set_variable(name, value)
        state.args.append((name, value))
        # The history has the default: what was given may be nobody's business.
        written.append(name if default is None else f"{name}={default}")
    lowering.commit(state, needed, " ".join(["ARG", *written]))


def _words(state: State, command: Command) -> tuple[str, ...]:
    return state.with_shell(command.words) if command.shell else command.words


def _cmd(lowering: Lowering, state: State, needed: Needed, instruction: Cmd) -> None:
    words = _words(state, instruction.command)
    state.change(cmd=words or None, args_escaped=True)
    state.has_cmd = True
    lowering.commit(state, needed, command_text("CMD", words))


def _entrypoint(lowering: Lowering, state: State, needed: Needed, instruction: Entrypoint) -> None:
    words = _words(state, instruction.command)
    state.change(entrypoint=words or None)
    if not state.has_cmd:  # one that was inherited belongs to the entry point that was
        state.change(cmd=None)
    lowering.commit(state, needed, command_text("ENTRYPOINT", words))


def _shell(lowering: Lowering, state: State, needed: Needed, instruction: Shell) -> None:
    state.change(shell=instruction.words)
    lowering.commit(state, needed, f"SHELL {goformat.plain_list(instruction.words)}")


def _expose(lowering: Lowering, state: State, needed: Needed, instruction: Expose) -> None:
    words = [word for text in instruction.ports for word in lowering.evaluator.words(text, state.env)]
    ports = exposed(words)
    state.collect("exposed_ports", {port: {} for port in ports})
    lowering.commit(state, needed, f"EXPOSE {goformat.plain_set(set(ports))}")


def _user(lowering: Lowering, state: State, needed: Needed, instruction: User) -> None:
    user = lowering.word(state, instruction.user)
    state.change(user=user)
    lowering.commit(state, needed, f"USER {user}")


def _volume(lowering: Lowering, state: State, needed: Needed, instruction: Volume) -> None:
    paths = [lowering.word(state, path) for path in instruction.paths]
    if not all(paths):
        raise Fault("VOLUME specified can not be an empty string")
    state.collect("volumes", {path: {} for path in paths})
    lowering.commit(state, needed, f"VOLUME {goformat.plain_list(paths)}")


def _stop_signal(lowering: Lowering, state: State, needed: Needed, instruction: StopSignal) -> None:
    signal = lowering.word(state, instruction.signal)
    signal_number(signal)
    state.change(stop_signal=signal)
    lowering.commit(state, needed, f"STOPSIGNAL {signal}")


def _healthcheck(lowering: Lowering, state: State, needed: Needed, instruction: Healthcheck) -> None:
    if instruction.command is None:
        test: tuple[str, ...] = ("NONE",)
    else:
        test = ("CMD-SHELL" if instruction.command.shell else "CMD", *instruction.command.words)
    check = HealthcheckConfig(
        test=test,
        interval=_time(instruction.interval),
        timeout=_time(instruction.timeout),
        start_period=_time(instruction.start_period),
        start_interval=_time(instruction.start_interval),
        retries=int(instruction.retries or "0"),
    )
    state.change(healthcheck=check)
    lowering.commit(state, needed, f"HEALTHCHECK {goformat.healthcheck(check)}")


def _time(text: str) -> int:
    try:
        return nanoseconds(text) if text else 0
    except ValueError as error:
        raise Fault(str(error), word=text) from None


def _maintainer(lowering: Lowering, state: State, needed: Needed, instruction: Maintainer) -> None:
    state.set_author(instruction.name)
    lowering.commit(state, needed, f"MAINTAINER {instruction.name}")


def _on_build(lowering: Lowering, state: State, needed: Needed, instruction: OnBuild) -> None:
    state.collect_trigger(instruction.expression)
    lowering.note(state, instruction)  # BuildKit writes none into the history


_HANDLERS: dict[type[Instruction], Callable[[Lowering, State, Needed, Any], None]] = {
    Arg: _arg,
    Cmd: _cmd,
    Entrypoint: _entrypoint,
    Env: _env,
    Expose: _expose,
    Healthcheck: _healthcheck,
    Label: _label,
    Maintainer: _maintainer,
    OnBuild: _on_build,
    Shell: _shell,
    StopSignal: _stop_signal,
    User: _user,
    Volume: _volume,
}
