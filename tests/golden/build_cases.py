"""Dockerfiles, with the options of their builds, for the golden tests of lowering."""

from __future__ import annotations

from typing import Any

BASE = """FROM busybox
ENV A=1 P="81 82"
LABEL l=1 "m n"="o p"
CMD []
USER $A:$A
VOLUME $A/x /$P
EXPOSE "90" 91/udp $P
MAINTAINER "x  y"
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=2h --start-interval=3ms --retries=2 CMD ["a", "b c"]
CMD [ "a\\"b", "c\\n", "é" ]
SHELL ["/bin/sh", "-ec"]
WORKDIR /base
ONBUILD ARG Q=3
ONBUILD COPY a /onb
ONBUILD RUN echo $Q
ONBUILD ENV W=$Q
"""
"""The image `knarr-golden-base` of some cases."""

# Also built by the real BuildKit: what it made of them is in build_images.json.
REAL: dict[str, tuple[dict[str, Any], str]] = {
    "all": ({}, """FROM busybox
ARG A=b
ENV X=1 Y="two words"
ENV Z $X
ENV X=2
RUN ["env"]
RUN echo $A > /f
COPY a b /dst/
WORKDIR /x
WORKDIR y
CMD ["x"]
EXPOSE 80 81/udp 90-92
LABEL z=1 a="2 3"
USER 5:6
WORKDIR /own
RUN ls -ld /own /x/y
VOLUME /v /w
STOPSIGNAL 9
HEALTHCHECK --interval=5s --retries=3 CMD wget x
SHELL ["/bin/sh","-ec"]
ENTRYPOINT foo bar
ONBUILD RUN echo $A
MAINTAINER me <me@x>
"""),
    "arguments": ({"build_args": {"X": "5", "NOT": None}}, """ARG G=busybox
ARG H=$G
FROM $H AS one
ARG G
ARG X=1
ARG TARGETOS TARGETVARIANT TARGETPLATFORM
RUN echo $G $X $TARGETOS
FROM one
ARG H
ARG Z
RUN echo $H $X
"""),
    "given": ({"build_args": {"A": "cc", "HTTP_PROXY": "http://x"}, "labels": {"zz": "1", "aa": "2"}}, """FROM busybox
ARG A=b
RUN true
ENV A=z
ARG A=q
RUN echo $A
LABEL aa=3
"""),
    "documents": ({}, """FROM busybox
ARG V=val
RUN <<EOF
echo one $V
echo two
EOF
RUN <<EOF sh -x
echo $V
EOF
RUN <<'EOF'
#!/bin/sh
echo bang $V
EOF
RUN cat <<A <<B > /ab
a $V
A
b
B
RUN <<-EOF
\techo tabbed
\tEOF
COPY <<one <<"two" /docs/
v=$V "q" \\$x
one
v=$V
two
"""),
    "copies": ({}, """FROM busybox
ENV V=val D=/dd
COPY --chown=1:2 --chmod=640 a /w/
COPY --link a b /l/
ADD --chmod=600 a /z
COPY $D/../a ${NOPE}b "$V/"
copy a $NOPE/x
run echo $NOPE "$D" '$D' ${V} \\$V
WORKDIR /app
COPY ["sub/c", "a", "./"]
COPY sub .
COPY sub/* x/./y/../
"""),
    "stages": ({}, """FROM busybox AS one
RUN echo 1 > /one
FROM one AS two
COPY --from=busybox /etc/passwd /p
COPY --from=0 /one /two
COPY --from=ONE /one /three
RUN --mount=type=bind,from=one,target=/m --mount=type=cache,target=/c --mount=type=tmpfs,target=/t --network=none ls /m
RUN --mount=type=secret,id=foo --mount=type=ssh true
FROM busybox AS unused
RUN false
FROM two
ENV x=y
"""),
    "scratch": ({}, """FROM scratch
WORKDIR /
COPY a /
WORKDIR sub
ENV A=2
"""),
    "own path": ({}, "FROM scratch\nENV A=2 PATH=/x\nCOPY a /a\n"),
    "inherited": ({}, """FROM knarr-golden-base
ENTRYPOINT x
HEALTHCHECK --retries=65 CMD foo
WORKDIR rel
LABEL l=2
ENV A=2 Z=1
"""),
    "inherited command": ({}, """FROM knarr-golden-base
CMD y
ENTRYPOINT x
WORKDIR /
HEALTHCHECK NONE
"""),
    "shell": ({}, """FROM busybox
SHELL ["/bin/busybox","sh","-c"]
RUN echo "a  b" \\
   && echo c
CMD exec  foo
EXPOSE $X 80/TCP
"""),
    "triggers of a stage": ({}, """FROM busybox AS build
ARG Q=1
ENV E=5
RUN echo 1
CMD foo
ONBUILD RUN echo trig $Q
ONBUILD ENV T=1
FROM build
ENTRYPOINT ["bar"]
RUN echo 2
"""),
    "target": ({"target": "BUILD"}, "FROM busybox AS build\nRUN echo 1\nFROM build\nRUN echo 2\n"),
    "escape": ({}, """# escape=`
FROM busybox
ENV A=C:\\foo
RUN echo a `
  b
ENV B="a`"b"
LABEL c=d\\e
COPY a /xy`$A
CMD echo $A
"""),
    "quotes": ({}, """FROM busybox
ENV a='single $HOME' b="double \\"x\\" $a" c=un\\ quoted
ENV d='it'"s"
LABEL "com.example"="a=b" x=
ARG e="q u" f=
RUN echo "$e" $f
USER "a b"
USER root
VOLUME ["/a b"]
COPY ["a", "/sp ace/"]
CMD echo "hi" 'there'
ENTRYPOINT [ "/bin/sh", "-c", "echo \\u00e9 \\"q\\"" ]
"""),
    "substitution": ({}, """FROM busybox
ENV A=hello B=
LABEL a=${A:-x} b=${B:-y} c=${C-z} d=${A:+w} e=${B+v} f="${A}-$A-\\$A"
ENV PATH=$PATH:/new
WORKDIR /${C:-dir}
"""),
    "argument again": ({}, """ARG X=1
FROM busybox
ARG X
ARG X=2
ARG Y=$X
ENV Y=3
RUN echo $X $Y
"""),
    "mounts": ({}, """FROM busybox AS tool
RUN echo t > /t
FROM busybox
ARG D=/cache ID=foo
WORKDIR /w
RUN --mount=type=cache,target=${D},id=$ID,mode=0700,uid=5 --mount=from=tool,source=/t,target=rel/t cat rel/t && ls -ld /cache
RUN --mount=type=tmpfs,target=/tm,size=1m --mount=source=a,dst=/ctx/a,rw df /tm
"""),
    "commands": ({}, """FROM busybox AS a
CMD ["one"]
FROM a AS b
ENTRYPOINT ["e"]
FROM b
CMD two
"""),
    "comments": ({}, """FROM busybox
RUN echo 1 && \\
  # comment
  echo 2

RUN ["/bin/sh", "-c", "echo \\"x y\\""]
RUN\techo   tabs
"""),
    "another platform": ({"platforms": ("linux/386",)}, """FROM --platform=linux/amd64 busybox AS one
ARG TARGETARCH TARGETPLATFORM BUILDPLATFORM
RUN echo $TARGETARCH $TARGETPLATFORM $BUILDPLATFORM > /one
FROM scratch
COPY --from=one /one /two
"""),
    "nothing": ({}, "FROM busybox\n"),
}  # fmt: skip

# What the BuildKit of the record cannot do, has no network for, or does otherwise.
OWN: dict[str, tuple[dict[str, Any], str]] = {
    "triggers": ({}, "FROM knarr-golden-base\nRUN echo $W\n"),
    "named contexts": (
        {"contexts": {
            "files": "sent:", "tool": "docker-image://busybox:1.36", "busybox": "docker-image://debian:13", "page": "https://example.org/d/x.txt",
            "source": "https://example.org/r.git#main", "nothing": "docker-image://scratch", "folder": "sent:",
        }},
        """FROM busybox AS tool
RUN never
FROM folder
COPY --from=files a /a
COPY --from=nothing / /n
COPY --from=page x.txt /p
RUN --mount=from=source,target=/s --mount=from=tool,target=/t true
"""),
    "addresses": ({}, """FROM scratch
ADD https://example.org/a/b.tar.gz?x=1 /web/
ADD --checksum=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --unpack https://example.org/c.tar.gz /web/
ADD --keep-git-dir=true --checksum=0123456789 https://example.org/r.git#main:sub /git
ADD git@example.org:r.git x.tar /mixed/
ADD --unpack=false x.tar /packed/
COPY --parents a/./b/* c/d /parents/
COPY --exclude=*.o --exclude=!keep.o src /src
"""),
    "linked": ({}, "FROM busybox\nWORKDIR /w\nCOPY --link a /a\nCOPY --link a /a\nFROM scratch\nCOPY --link a /a\nCOPY --from=0 /a /b\n"),
    "two platforms": ({"platforms": ("linux/arm64", "linux/amd64")}, """FROM --platform=$BUILDPLATFORM busybox AS build
ARG TARGETARCH
RUN make $TARGETARCH
FROM busybox
COPY --from=build /out /
"""),
    "secrets": ({}, """FROM busybox
RUN --mount=type=secret,id=a/token --mount=type=secret,id=k,env=KEY,required --mount=type=secret,target=/etc/key,mode=0440 use $KEY
RUN --mount=type=ssh --mount=type=ssh,id=other,uid=5 --mount=type=ssh,target=/sock true
"""),
    "settings": (
        {
            "network": "none", "hosts": ("a:1.2.3.4", "b=::1"), "no_cache_filter": ("TWO",), "allow": ("network.host",),
            "build_args": {
                "BUILDKIT_SANDBOX_HOSTNAME": "box", "BUILDKIT_CACHE_MOUNT_NS": "ns", "SOURCE_DATE_EPOCH": "77", "https_proxy": "p",
            },
        },
        "FROM busybox AS one\nRUN a\nFROM one AS two\nRUN --network=host --mount=type=cache,target=/c b\nWORKDIR /w\n"
    ),
    "equal": ({}, """FROM busybox AS a
RUN same
RUN one
FROM busybox AS b
RUN same
FROM a
COPY --from=b / /b
COPY --from=busybox:latest / /c
"""),
}  # fmt: skip
