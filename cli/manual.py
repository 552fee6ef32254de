"""What `--help` says: summaries, flags by group, examples. Data only; `cli/help.py` lays it out."""
# ruff: noqa: E501

SUMMARIES = {
    "attach": "Join your terminal to a running container",
    "create": "Make a container without starting it",
    "daemon": "Run the daemon (flags as dockerd's)",
    "debug": "Look into how a container is started",
    "events": "Watch what happens in the daemon",
    "exec": "Run one more command in a running container",
    "history": "Show the layers of an image and what made them",
    "images": "List images",
    "import": "Make an image from the tar of a root file system",
    "info": "Show what the daemon runs on and how it is set up",
    "inspect": "Show everything known about a container or image, as JSON",
    "login": "Log in to a registry (Docker Hub unless a server is named)",
    "logout": "Forget the login at a registry",
    "pull": "Fetch an image from a registry or from another Knarr host",
    "push": "Send an image to a registry or to another Knarr host",
    "save": "Write images to an archive",
    "search": "Search a registry for images",
    "kill": "Send containers a signal (KILL unless told otherwise)",
    "load": "Take in images from an archive that 'docker save' or an OCI tool wrote",
    "logs": "Show what a container wrote",
    "ps": "List containers",
    "rename": "Give a container another name",
    "restart": "Stop containers and start them again",
    "rm": "Remove containers",
    "rmi": "Remove images",
    "run": "Make a container from an image and run it",
    "start": "Start containers that exist",
    "stop": "Ask containers to end, and end them when they do not",
    "tag": "Give an image one more name",
    "top": "Show the processes of a container",
    "version": "Show the versions of client and daemon",
    "wait": "Wait until containers end and print their exit codes",
    "registry serve": "Serve a registry from this host's store, for as long as this command runs",
    "image from-host": "Make an image of programs of this host and the libraries they need",
    "container prune": "Remove all containers that do not run",
    "image prune": "Remove images that nothing uses",
    "manifest annotate": "Say what platform a manifest of a list is for",
    "manifest create": "Start a list of manifests, one for each platform",
    "manifest inspect": "Show a manifest or a list of them, as JSON",
    "manifest push": "Send a list of manifests to its registry",
    "manifest rm": "Forget lists of manifests that were started here",
    "system check": "Look for damage in the store, and repair it",
    "system gc": "Remove images by the daemon's rules (--gc-...), or see what would go",
    "system df": "Show what takes space on the disk",
    "system dial-stdio": "Connect standard input and output to the daemon (for clients that come over ssh)",
    "system prune": "Remove everything that nothing uses",
    "container inspect": "Show everything known about containers, as JSON",
    "image inspect": "Show everything known about images, as JSON",
}

COMMON = ("run", "exec", "ps", "logs", "images", "stop", "rm")
GROUP_SUMMARIES = {"container": "Commands on containers", "registry": "A registry of this host", "image": "Commands on images",
    "manifest": "Commands on manifests and lists of them in a registry", "system": "Commands on the daemon"}

_FORMAT = "table, json, table TEMPLATE or a Go template, such as '{{.ID}} {{.Names}}'"
_KEYS = "Keys that detach without ending anything (ctrl-p,ctrl-q)"
_MOMENT = "2024-05-01T10:00:00Z, a Unix time, or a duration such as 10m"

# command → [(group, {flag: text})]
FLAGS: "dict[str, list[tuple[str, dict[str, str]]]]" = {
    "run": [
        ("Run", {
            "detach": "In the background; prints the container's id", "interactive": "Keep stdin open", "tty": "Give it a terminal",
            "rm": "Remove it, and its anonymous volumes, when it ends", "name": "Its name", "attach": "Attach to stdin, stdout or stderr (default: stdout and stderr)",
            "detach-keys": _KEYS, "sig-proxy": "Pass signals on to the process (true)", "trace": "Afterwards show where the time of the start went",
            "cidfile": "Write the id to this file, which must not exist", "restart": "no, on-failure[:N], always or unless-stopped",
            "init": "Run a small init as process 1, which reaps zombies and passes signals on", "stop-signal": "Signal that asks it to end",
            "stop-timeout": "Seconds between that signal and KILL",
        }),
        ("Image", {
            "pull": "Fetch the image: always, missing or never (missing)", "quiet": "Do not show the progress of that", "platform": "os/arch[/variant]",
            "disable-content-trust": "Accepted for compatibility; there is no content trust",
        }),
        ("Process", {
            "entrypoint": "Program to run instead of the image's", "env": "Environment: NAME=VALUE, or NAME to take over yours", "env-file": "File of such lines",
            "user": "NAME or UID, with :GROUP if needed", "group-add": "One more group", "workdir": "Working directory",
            "hostname": "Host name", "domainname": "NIS domain name", "ulimit": "Limit: NAME=SOFT[:HARD]", "oom-score-adj": "The kernel's readiness to kill it, -1000 to 1000",
        }),
        ("Files", {
            "volume": "HOST:PATH[:ro,z,…] or VOLUME:PATH or PATH", "mount": "type=bind|volume|tmpfs|image,source=…,target=…[,readonly,…]",
            "tmpfs": "PATH[:size=…,mode=…]", "read-only": "The root file system cannot be written", "volumes-from": "All mounts of another container",
            "volume-driver": "Driver of the volumes made here", "storage-opt": "Option of the storage driver", "shm-size": "Size of /dev/shm (64m)",
        }),
        ("Network", {
            "network": "bridge, none, host, container:NAME or a network; name=…,ip=…,alias=… for more", "network-alias": "One more name in that network",
            "publish": "[ADDRESS:][HOST:]CONTAINER[/tcp|udp|sctp]", "publish-all": "Publish every exposed port on a free one", "expose": "Say that a port is used",
            "ip": "IPv4 address", "ip6": "IPv6 address", "link-local-ip": "Link-local address", "mac-address": "Ethernet address", "link": "Reach another container by name (old)",
            "add-host": "Line for /etc/hosts: NAME:ADDRESS, or NAME:host-gateway", "dns": "Name server", "dns-option": "Option of the resolver", "dns-search": "Domain to search",
        }),
        ("Limits", {
            "memory": "Most memory", "memory-reservation": "Memory it should have when memory is short", "memory-swap": "Memory and swap together; -1 for no limit",
            "memory-swappiness": "0 to 100", "kernel-memory": "Obsolete", "oom-kill-disable": "Freeze instead of being killed without memory", "cpus": "Most CPUs, such as 1.5",
            "cpu-shares": "Weight against others (1024)", "cpu-period": "CFS period, µs", "cpu-quota": "CFS quota, µs", "cpu-rt-period": "Real-time period, µs",
            "cpu-rt-runtime": "Real-time quota, µs", "cpuset-cpus": "CPUs it may run on: 0-3 or 0,1", "cpuset-mems": "Memory nodes it may use", "pids-limit": "Most processes; -1 for no limit",
            "blkio-weight": "Weight for disks, 10 to 1000", "blkio-weight-device": "DEVICE:WEIGHT", "device-read-bps": "DEVICE:RATE", "device-write-bps": "DEVICE:RATE",
            "device-read-iops": "DEVICE:NUMBER a second", "device-write-iops": "DEVICE:NUMBER a second", "cgroup-parent": "Control group above its own",
        }),
        ("Rights and namespaces", {
            "privileged": "All capabilities and devices: no protection of the host", "cap-add": "One more capability", "cap-drop": "One capability less, or ALL",
            "security-opt": "seccomp=FILE, no-new-privileges, apparmor=…, systempaths=unconfined", "device": "HOST[:PATH][:rwm], or a CDI name", "gpus": "GPUs: all, a number, or device=…",
            "device-cgroup-rule": "Rule such as 'c 1:3 rwm'", "sysctl": "NAME=VALUE", "pid": "host or container:NAME", "ipc": "none, private, shareable, host or container:NAME",
            "uts": "host", "userns": "host", "cgroupns": "private or host", "runtime": "OCI runtime", "use-api-socket": "Give it the API's socket",
        }),
        ("Logs, labels, health", {
            "label": "NAME=VALUE", "label-file": "File of such lines", "annotation": "NAME=VALUE for the OCI runtime", "log-driver": "json-file, local, none …",
            "log-opt": "max-size=10m, max-file=3, …", "health-cmd": "Command that tells whether it is well", "health-interval": "Between two checks (30s)",
            "health-timeout": "Longest check (30s)", "health-retries": "Failures that make it unhealthy (3)", "health-start-period": "Failures do not count this long",
            "health-start-interval": "Between checks in that time (5s)", "no-healthcheck": "No check, whatever the image says",
        }),
        ("Windows only", {"cpu-count": "CPUs", "cpu-percent": "CPU per cent", "io-maxbandwidth": "Bytes a second", "io-maxiops": "Operations a second", "isolation": "Isolation"}),
    ],
    "start": [("Options", {
        "attach": "Show what it writes, pass signals on", "interactive": "Give it your stdin", "detach-keys": _KEYS, "checkpoint": "Restore this checkpoint",
        "checkpoint-dir": "Where checkpoints are",
    })],
    "exec": [("Options", {
        "detach": "In the background", "interactive": "Keep stdin open", "tty": "Give it a terminal", "env": "NAME=VALUE, or NAME to take over yours", "env-file": "File of such lines",
        "user": "NAME or UID, with :GROUP if needed", "workdir": "Working directory", "privileged": "All capabilities", "detach-keys": _KEYS,
    })],
    "ps": [("Which", {
        "all": "Those that do not run, too", "filter": "KEY=VALUE: status, name, id, label, ancestor, exited, before, since, network, volume, publish, health",
        "last": "The N newest", "latest": "The newest",
    }), ("How", {"format": _FORMAT, "quiet": "Only ids", "no-trunc": "Nothing shortened", "size": "Sizes, which takes time"})],
    "logs": [("Options", {
        "follow": "Go on showing what comes", "tail": "Only the last N lines (all)", "since": _MOMENT, "until": _MOMENT, "timestamps": "With the time of every line",
        "details": "With the attributes that --log-opt asked for",
    })],
    "stop": [("Options", {"signal": "Signal that asks it to end", "timeout": "Seconds before KILL (10); -1 waits for ever"})],
    "restart": [("Options", {"signal": "Signal that asks it to end", "timeout": "Seconds before KILL (10); -1 waits for ever"})],
    "kill": [("Options", {"signal": "Name or number (KILL)"})],
    "rm": [("Options", {"force": "Also when it runs", "volumes": "Its anonymous volumes, too", "link": "Only the link of that name"})],
    "attach": [("Options", {"detach-keys": _KEYS, "no-stdin": "Without stdin", "sig-proxy": "Pass signals on to the process (true)"})],
    "images": [("Which", {"all": "Also images that only others are built on", "filter": "KEY=VALUE: dangling, label, reference, before, since, until"}),
               ("How", {"format": _FORMAT, "quiet": "Only ids", "no-trunc": "Nothing shortened", "digests": "With digests", "tree": "As a tree of platforms"})],
    "history": [("Options", {"format": _FORMAT, "human": "Sizes and times for people (true)", "no-trunc": "Nothing shortened", "platform": "os/arch[/variant]", "quiet": "Only ids"})],
    "rmi": [("Options", {"force": "Also when a stopped container uses it", "no-prune": "Keep what it was built on", "platform": "Only this platform"})],
    "load": [("Options", {"input": "Read this file, not stdin", "quiet": "No progress", "platform": "Only this platform"})],
    "pull": [("What", {
        "all-tags": "Every tag of the repository", "platform": "os/arch[/variant], when it is not this host's", "from": "Another Knarr host instead of the registry: ssh://[USER@]HOST or unix://SOCKET",
    }), ("How", {
        "limit-rate": "At most so many bytes a second: 500k, 2m", "quiet": "Only the reference at the end", "disable-content-trust": "Accepted for compatibility; there is no content trust",
    })],
    "push": [("What", {
        "all-tags": "Every tag of the repository", "platform": "Only this platform of a multi-platform image", "to": "Another Knarr host instead of the registry: ssh://[USER@]HOST or unix://SOCKET",
    }), ("How", {
        "limit-rate": "At most so many bytes a second: 500k, 2m", "quiet": "Only the reference at the end", "disable-content-trust": "Accepted for compatibility; there is no content trust",
    })],
    "login": [("Options", {"username": "User", "password": "Password or token; others can see it in the list of processes", "password-stdin": "Read the password from stdin"})],
    "search": [("Options", {
        "filter": "is-official=true, stars=N", "format": "table, json, table TEMPLATE or a Go template, such as '{{.Name}} {{.StarCount}}'", "limit": "At most so many", "no-trunc": "Nothing shortened",
    })],
    "save": [("Options", {
        "output": "Write this file, which is complete as soon as it is there, not stdout", "platform": "Only this platform of a multi-platform image",
        "since": "Leave out the layers of this image, which the other side has",
    })],
    "container prune": [("Options", {"filter": "until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]", "force": "Do not ask"})],
    "image prune": [("Options", {"all": "Every image that no container uses, not only those without a name", "filter": "until=24h, unused-for=30d, label=KEY[=VALUE], label!=KEY[=VALUE]", "force": "Do not ask"})],
    "system prune": [("Options", {
        "all": "Every image that no container uses, not only those without a name", "volumes": "Anonymous volumes, too", "filter": "until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]", "force": "Do not ask",
    })],
    "system df": [("Options", {"verbose": "Each image, container, volume and cache entry", "format": "table, json, table TEMPLATE or a Go template, such as '{{.Type}} {{.Size}}'"})],
    "system gc": [("Options", {"dry-run": "Remove nothing, show what would go", "format": _FORMAT, "quiet": "Only ids"})],
    "system check": [("Options", {
        "repair": "Repair what can be repaired here, set aside what cannot", "all": "Also what is sound", "quick": "Without comparing the content of files", "format": "table, json, table TEMPLATE or a Go template, such as '{{.Kind}} {{.Name}} {{.State}}'",
    })],
    "manifest inspect": [("Options", {"verbose": "With descriptors, platforms and the manifest as it is", "insecure": "Also without TLS or with a certificate nobody knows"})],
    "manifest create": [("Options", {"amend": "Add to a list that exists", "insecure": "Also without TLS or with a certificate nobody knows"})],
    "manifest annotate": [("Options", {"arch": "Architecture", "os": "Operating system", "os-features": "Features of the operating system", "os-version": "Its version", "variant": "Variant of the architecture"})],
    "manifest push": [("Options", {"purge": "Forget the list here when it was sent", "insecure": "Also without TLS or with a certificate nobody knows"})],
    "import": [("Options", {"change": "Dockerfile instruction for the image's configuration", "message": "Comment", "platform": "os/arch[/variant]"})],
    "inspect": [("Options", {"format": "json or a Go template, such as '{{.State.Status}}'", "size": "Sizes of a container's files", "type": "container, image, network or volume"})],
    "events": [("Options", {"filter": "KEY=VALUE: container, image, event, type, label …", "format": "json or a Go template", "since": _MOMENT, "until": _MOMENT})],
    "version": [("Options", {"format": "json or a Go template"})],
    "info": [("Options", {"format": "json or a Go template"})],
    "": [("Global options", {
        "host": "The daemon: unix://PATH, tcp://HOST:PORT or ssh://[USER@]HOST (also KNARR_HOST, DOCKER_HOST)", "context": "Only 'default'", "config": "Folder of config.json, which holds logins at registries (also DOCKER_CONFIG; ~/.docker)",
        "debug": "Accepted: this client writes no log", "log-level": "Accepted, likewise", "tls": "Not implemented yet", "tlscacert": "Not implemented yet", "tlscert": "Not implemented yet",
        "tlskey": "Not implemented yet", "tlsverify": "Not implemented yet", "version": "Print the version",
    })],
}
FLAGS["container inspect"] = [("Options", {"format": FLAGS["inspect"][0][1]["format"], "size": "Sizes of its files"})]
FLAGS["image inspect"] = [("Options", {"format": "json or a Go template, such as '{{.Config.Cmd}}'", "platform": "os/arch[/variant]"})]
FLAGS["create"] = FLAGS["run"]
FLAGS["registry serve"] = [
    ("Where", {
        "addr": "Address to listen on: HOST:PORT, or :PORT for all of this host's (127.0.0.1:5000)", "tls-cert": "Certificate of the server, PEM", "tls-key": "Its key, PEM",
    }),
    ("Who", {
        "htpasswd": "File of users and bcrypt hashes (htpasswd -B); read again when it changes", "realm": "Name of the registry, shown when a password is asked for",
        "anonymous-pull": "With --htpasswd: pulling needs no password. The docker CLI then never sends one, so push with another client",
        "token-realm": "URL of a token server", "token-service": "Name of this registry there", "token-issuer": "Name of the token server",
        "token-cert": "PEM file of the certificates or public keys that sign its tokens",
    }),
    ("What", {
        "read-only": "Refuse pushes and deletes", "no-delete": "Refuse deletes", "name": "Serve this repository only, or NAME/* for all below; may be repeated",
        "proxy": "Cache another registry: its URL. Further ones are reached with ?ns=HOST", "proxy-username": "User name there", "proxy-password-stdin": "Password there, from standard input",
        "quiet": "Do not print a line per request",
    }),
]

EXAMPLES: "dict[str, list[tuple[str, str]]]" = {
    "run": [("A shell, gone when you leave it", "knarr run --rm -it debian bash"), ("A service in the background", "knarr run -d --name web --network host nginx"),
            ("A filter in a pipe", "echo hi | knarr run --rm -i busybox tr a-z A-Z"), ("Where the time of a start goes", "knarr run --rm --trace busybox true")],
    "create": [("Now make it, later start it", "knarr create --name job debian make -C /src"), ("", "knarr start -a job")],
    "start": [("", "knarr start web db"), ("See what it writes", "knarr start -a job")],
    "exec": [("", "knarr exec -it web sh"), ("With another user and directory", "knarr exec -u www-data -w /srv web ls -l")],
    "ps": [("", "knarr ps -a"), ("Names and states only", "knarr ps -a --format 'table {{.Names}}\\t{{.Status}}'"), ("Remove all that ended", "knarr rm $(knarr ps -aq -f status=exited)")],
    "logs": [("The last lines and what comes", "knarr logs -f --tail 20 web"), ("The last ten minutes", "knarr logs -t --since 10m web")],
    "stop": [("", "knarr stop web"), ("Give a database a minute", "knarr stop -t 60 db")],
    "restart": [("", "knarr restart web")],
    "kill": [("Have it read its configuration again", "knarr kill -s HUP web")],
    "rm": [("", "knarr rm -f web"), ("With its anonymous volumes", "knarr rm -v job")],
    "attach": [("Leave again with ctrl-p ctrl-q", "knarr attach web")],
    "wait": [("Its exit code, when it ended", "knarr wait job")],
    "top": [("", "knarr top web"), ("With ps's options", "knarr top web -eo pid,rss,cmd")],
    "rename": [("", "knarr rename web web-old")],
    "images": [("", "knarr images"), ("Those without a name", "knarr images -f dangling=true")],
    "history": [("", "knarr history --no-trunc debian")],
    "rmi": [("", "knarr rmi debian:old")],
    "tag": [("", "knarr tag debian registry.example/base:12")],
    "load": [("", "knarr load -i image.tar"), ("", "docker save debian | knarr load")],
    "pull": [("", "knarr pull debian:bookworm-slim"), ("Gently, over a narrow line", "knarr pull --limit-rate 500k registry.example/app"),
             ("From another Knarr host, no registry needed", "knarr pull --from ssh://root@gateway app:2")],
    "push": [("", "knarr push registry.example/app:2"), ("To another Knarr host, no registry needed", "knarr push --to ssh://root@edge7 app:2")],
    "login": [("", "knarr login registry.example"), ("In a script", "knarr login -u robot --password-stdin registry.example < token")],
    "logout": [("", "knarr logout registry.example")],
    "search": [("", "knarr search --filter is-official=true debian")],
    "save": [("", "knarr save -o app.tar app:2"), ("Only what a host with app:1 lacks", "knarr save --since app:1 -o update.tar app:2")],
    "container prune": [("Those that ended a day ago or earlier", "knarr container prune --filter until=24h")],
    "image prune": [("", "knarr image prune"), ("All that nothing uses and that are older than a week", "knarr image prune -a --filter until=168h")],
    "system prune": [("", "knarr system prune -f")],
    "system df": [("", "knarr system df -v")],
    "system gc": [("What the rules would remove", "knarr system gc --dry-run")],
    "system check": [("", "knarr system check --repair"), ("In a script: exit status 1 when damage is left", "knarr system check --format json")],
    "manifest inspect": [("", "knarr manifest inspect debian:bookworm")],
    "manifest create": [("", "knarr manifest create registry.example/app:2 registry.example/app:2-amd64 registry.example/app:2-arm64")],
    "manifest annotate": [("", "knarr manifest annotate --arch arm64 --variant v8 registry.example/app:2 registry.example/app:2-arm64")],
    "manifest push": [("", "knarr manifest push --purge registry.example/app:2")],
    "manifest rm": [("", "knarr manifest rm registry.example/app:2")],
    "import": [("A Debian from nothing", "mmdebstrap --variant=minbase bookworm - | knarr import - debian"), ("With a default command", "knarr import -c 'CMD [\"bash\"]' root.tar debian:12")],
    "inspect": [("", "knarr inspect web"), ("One value", "knarr inspect -f '{{.State.Pid}}' web"), ("A list", "knarr inspect -f '{{range .Mounts}}{{println .Destination}}{{end}}' web")],
    "events": [("Containers that end", "knarr events -f event=die"), ("As JSON lines", "knarr events --format json")],
    "version": [("", "knarr version --format '{{.Server.Version}}'")],
    "info": [("", "knarr info -f '{{.CgroupVersion}}'")],
}
