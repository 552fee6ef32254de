"""Dockerfile instructions of `import --change`."""

from __future__ import annotations

import pytest

from engine.errors import InvalidParameter
from engine.spec.changes import apply
from engine.spec.image import ContainerConfig


def test_every_instruction() -> None:
    config = apply(
        ContainerConfig(env=("A=1",)),
        [
            'CMD ["top", "-b"]', "entrypoint /bin/run $X", "ENV A=2 B=\"two words\" C=x\\ y", "ENV OLD some value",
            "EXPOSE 80 53/udp 8000-8002", 'LABEL one=1 "two words"=2',
            "USER 1000:1000", 'VOLUME ["/a b"]', "VOLUME /c /d", "WORKDIR /srv", "WORKDIR app/../lib",
            "STOPSIGNAL SIGINT", "ONBUILD RUN make", "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f localhost",
        ],
    )  # fmt: skip
    assert config.cmd == ("top", "-b")
    assert config.entrypoint == ("/bin/sh", "-c", "/bin/run $X")
    assert config.env == ("A=2", "B=two words", "C=x y", "OLD=some value")
    assert list(config.exposed_ports or ()) == ["80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp"]
    assert config.labels == {"one": "1", "two words": "2"}
    assert config.user == "1000:1000"
    assert list(config.volumes or ()) == ["/a b", "/c", "/d"]
    assert config.working_dir == "/srv/lib"
    assert config.stop_signal == "SIGINT"
    assert config.on_build == ("RUN make",)
    assert config.healthcheck is not None
    assert config.healthcheck.test == ("CMD-SHELL", "curl -f localhost")
    assert (config.healthcheck.interval, config.healthcheck.timeout, config.healthcheck.retries) == (90 * 10**9, 500 * 10**6, 3)


def test_other_forms() -> None:
    config = apply(ContainerConfig(), ['SHELL ["/bin/bash", "-c"]', "CMD echo hi", "HEALTHCHECK NONE", "ENTRYPOINT []"])
    assert config.cmd == ("/bin/bash", "-c", "echo hi")
    assert config.healthcheck is not None
    assert config.healthcheck.test == ("NONE",)
    assert config.entrypoint is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUN make", "RUN is not a valid change command"),
        ("EXPOSE 70000", "invalid containerPort: 70000"),
        ("EXPOSE x", "invalid containerPort: x"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV A", "ENV must have two arguments"),
        ("LABEL =x", "LABEL names can not be blank"),
        ('ENV A="x', "unexpected end of statement"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD"),
        ("ONBUILD FROM x", "FROM isn't allowed"),
        ("HEALTHCHECK --interval=x CMD a", "invalid duration"),
        ("HEALTHCHECK --nope=1 CMD a", "unknown flag: nope"),
        ("HEALTHCHECK CMD", "Missing command"),
        ("USER a b", "USER requires exactly one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
    ],
)
def test_errors(line: str, message: str) -> None:
    with pytest.raises(InvalidParameter, match=message):
        apply(ContainerConfig(), [line])
