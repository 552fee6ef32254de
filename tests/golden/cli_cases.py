"""Command lines that knarr must take as the docker CLI does, and the answers of the daemon they are asked with. Data only."""
# ruff: noqa: E501

from __future__ import annotations

import time

from tests.golden.cli_fake import CONTAINER_ID, frame

# ages are what is compared, so moments are relative to now
DAY = 86400
NOW = int(time.time())

# arguments of `create`, before IMAGE COMMAND
CREATE = """\
--add-host a:1.2.3.4
--add-host a=::1
--add-host a:host-gateway
--add-host a:zz
--add-host [::1]:x
--annotation a=b
--annotation a
-a stdin -a STDOUT
-a stderr
--blkio-weight 100
--blkio-weight-device /dev/sda:100
--blkio-weight-device /dev/sda:1
--blkio-weight-device sda:1
--cap-add NET_ADMIN --cap-add ALL
--cap-drop ALL
--cgroup-parent /x
--cgroupns host
--cgroupns foo
-c 512
--cpus 1.5
--cpus 0.1234567891
--cpus 1/2
--cpus x
--cpuset-cpus 0-1
--cpuset-mems 0
--device /dev/null
--device /dev/null:/dev/x
--device /dev/null:/dev/x:r
--device /dev/null:rw
--device nvidia.com/gpu=all
--device null
--device /dev/null:/dev/x:zz
--device-cgroup-rule 'c 1:3 rwm'
--device-cgroup-rule foo
--device-read-bps /dev/sda:1mb
--device-read-bps /dev/sda:x
--device-read-bps sda
--device-read-iops /dev/sda:10
--device-read-iops /dev/sda:x
--device-write-bps /dev/sda:1k
--device-write-iops /dev/sda:1
--dns 1.1.1.1
--dns x
--dns-option ndots:1 --dns-opt x
--dns-search a.b --dns-search .
--dns-search -bad-
--domainname d
--entrypoint /bin/x
--entrypoint=
-e A=b -e FROM_ENV -e NOPE_X -e C=
-e =x
--env-file env
--env-file env -e A=9
--env-file none
--expose 80 --expose 81/udp --expose 90-92
--expose 1:2
--expose x
--gpus all
--gpus 2
--gpus "device=0,1"
--gpus device=0
--gpus foo
--gpus driver=x,count=3,capabilities=compute
--gpus foo=1
--group-add 5
--health-cmd true --health-interval 3s --health-timeout 1m30s --health-retries 3 --health-start-period 500ms --health-start-interval 1h
--health-interval 3
--health-interval -3s
--health-retries -1
--health-interval 0s
--no-healthcheck --health-cmd x
--no-healthcheck
-h host
--init
--init=false
-i
--ip 1.2.3.4
--ip 1.2.3.4 --network foo
--ip6 ::1 --network foo
--ipc host
--isolation default
-l a=b -l c -l a=d
-l =x
--label-file labels -l x=y
--link a:b
--link a --network foo
--link a:b:c
--link-local-ip 169.254.1.1 --network foo
--log-driver json-file --log-opt max-size=10m --log-opt tag
--log-driver none --log-opt a=b
--mac-address 92:d0:c6:0a:29:33
--mac-address zz
-m 512m
-m 1.5G
-m 100
-m 2GiB
-m 10kb
-m -1
-m 1x
-m 1_000
--memory-reservation 1g
--memory-swap -1
--memory-swap 2g
--memory-swap -2
--memory-swappiness 50
--memory-swappiness 200
--memory-swappiness -1
--mount type=bind,source=/a,target=/b,readonly
--mount type=bind,src=.,dst=/b,ro=false,bind-propagation=rshared
--mount type=volume,source=v,target=/b,volume-nocopy,volume-label=a=b,volume-driver=d,volume-opt=o=1,volume-subpath=s
--mount type=tmpfs,target=/b,tmpfs-size=10m,tmpfs-mode=1770
--mount type=image,source=i,target=/b,image-subpath=x
--mount type=bind,source=/a,target=/b,bind-recursive=disabled,consistency=cached
--mount type=bind,source=/a,target=/b,bind-recursive=readonly
--mount type=bind,source=/a,target=/b,bind-recursive=readonly,ro,bind-propagation=rprivate
--mount type=bind,source=/a,target=/b,bind-recursive=writable,ro
--mount type=bind,source=/a,target=/b,bind-nonrecursive
--mount type=bind,target=/b
--mount target=/b
--mount type=foo,target=/b
--mount type=volume,target=/b,bind-propagation=rshared
--mount type=bind,source=/a,target=/b,tmpfs-size=1
--mount type=bind,source=/a,target=/b,foo=bar
--mount type=bind,source=/a,target=/b,ro=x
--mount type=bind,source=/a,target=/b,foo
--mount type=tmpfs,target=/b,tmpfs-mode=9
--mount "type=bind,source=/a"
--mount type=bind,source=rel,target=/b
--name n
--network host
--network none
--network bridge
--network default
--network container:x
--net foo --net-alias z
--network foo --network bar
--network foo --network host
--network foo --network foo
--network name=foo,alias=a,ip=1.2.3.4,mac-address=92:d0:c6:0a:29:33,driver-opt=a=b,gw-priority=5,link-local-ip=169.254.1.1
--network name=foo,ip=1.2.3.4 --ip 1.2.3.5
--network alias=x
--network name=foo,zz=1
--network name=foo,gw-priority=x
--network foo --network-alias a --network-alias b --network bar
--network-alias a
--network bridge --network bar
--oom-kill-disable
--oom-score-adj -500
--pid host
--pid container:x
--pid foo
--pids-limit 100
--pids-limit -1
--platform linux/arm64
--privileged
-p 80
-p 8080:80
-p 127.0.0.1:8080:80/udp
-p [::1]:8080:80
-p ::1:8080:80
-p 8000-8002:80-82
-p 8000-8002:80
-p 8000-8001:80-82
-p 127.0.0.1::80
-p published=8080,target=80
-p target=80,protocol=udp
-p x
-p 99999
-p 80:99999
-p 1.2.3:80:80
-p 80/foo
-p 80:80 -p 81:80
-p -
-P
--pull never
--pull foo
-q
--read-only
--restart always
--restart on-failure:3
--restart on-failure:x
--restart :3
--restart foo
--restart unless-stopped
--restart no
--restart=
--rm
--rm --restart always
--rm=false
--rm=foo
--runtime runc
--security-opt no-new-privileges
--security-opt no-new-privileges:true
--security-opt apparmor=x --security-opt label=disable
--security-opt seccomp=unconfined
--security-opt seccomp=seccomp.json
--security-opt seccomp=none.json
--security-opt systempaths=unconfined
--security-opt foo
--security-opt label:disable
--shm-size 64m
--stop-signal INT
--stop-timeout 5
--stop-timeout 0
--storage-opt size=1G
--storage-opt size
--sysctl net.ipv4.ip_forward=1
--sysctl kernel.foo=1
--sysctl kernel.shm_rmid_forced=1
--sysctl net.x
--tmpfs /t
--tmpfs /t:size=1m,mode=1777
-t
-t=false
--ulimit nofile=1024:2048
--ulimit core=0
--ulimit nofile=5:3
--ulimit foo=1
--ulimit nofile=x
--ulimit core=-1
--ulimit nofile=1:2:3
--ulimit nproc=-1:3
-u 1:2
--userns host
--userns foo
--uts host
--uts foo
-v /a:/b
-v /a:/b:ro,z
-v vol:/b
-v /anon
-v ./x:/b
-v ../x:/b:ro
-v .:/b
-v a:b:c:d
-v /a:
-v :/b
-v /a:/b -v /a:/b -v /c:/d
-v /a:/b:
-v /a:/b:zz
-v /
--volumes-from c --volumes-from d:ro
-w /w
-e=A=b
-eA=b
-p80:80
--cap-add net_admin --cap-add all --cap-drop ALL --cap-drop NET_ADMIN
--cap-add CAP_SYS_ADMIN --cap-add sys_admin --cap-drop sys_admin
--cap-add foo --cap-add ALL
--cap-drop foo --cap-drop ALL --cap-add x
-e A=b -e C=
-e Z=1 -e A=2 -e Z=3
-e Z=1 -e A=2 -e NOPE -e Q
-e A -e B -e C -e D=1
-e C= -e A=b
-v /a:/b:c
-v a::b
-v vol:/b/../c
-v vol:relative
-v /a/
--network bridge --network-alias a
--network host --network-alias a
--network bridge --ip 1.2.3.4
--network container:x --ip 1.2.3.4
--network foo --network bridge
--network foo --network none
--network default --network foo
--network name=foo --network-alias a
--network name=foo,alias=b --network-alias a
--network name=foo,alias=b --link a:b
--network foo --link a:b --link c
--mount type=bind,source=/a,target=/b,ro
--mount type=bind,source=/a,target=/b,ro=1
--mount type=bind,source=/a,target=/b,ro=True
--mount type=volume,target=/b,volume-nocopy=x
--mount type=bind,source=/a,target=/b,bind-nonrecursive=x
--mount type=bind,source=/a,target=/b,bind-recursive=x
--mount type=bind,source=/a,target=/b,volume-foo=x
--mount type=bind,source=/a,target=/b,bind-foo=x
--mount type=tmpfs,target=/b,tmpfs-size=x
--mount type=tmpfs,source=/x,target=/b
--mount type=,target=/b
--mount TYPE=Bind,Source=/A,target=/b
--mount "type=bind, source=/a,target=/b"
--mount type=bind,source=./x,target=/b
--mount type=bind,source=../x,target=/b
--mount type=volume,source=./x,target=/b
--mount type=tmpfs,target=/b,tmpfs-size=0
--mount type=bind,source=/a,target=/b,consistency=Cached,bind-propagation=Zz
--ulimit nofile=-1:5
--ulimit nofile=5:-1
--ulimit nofile=a:5
--ulimit nofile=
--ulimit =5
--ulimit nofile=5 --ulimit core=1 --ulimit nofile=6
--gpus count=x
--gpus device=0,device=1
--gpus 'device=0,"capabilities=a,b"'
--gpus '"device=0,1"'
--gpus options=a=b
-m 0
-m ''
-m 1kib
-m 1b
-m -5
-m 5.5.5
-m 1e3
-m ' 5m'
-m '5 m'
-m 1_000k
--memory-swap x
-p target=5
-p published=1-2,target=5-6
-p target=5,mode=host
-p target=x
-p 1:2:3:4
-p :80
-p 0:80
-p 80/UDP
-p /tcp
-p 90-80
-p 80:90-80
-p a:80
-p localhost:1:2
--expose 80/foo
--expose 80-70
--expose ''
--security-opt ''
--security-opt no-new-privileges=false
--security-opt seccomp
--security-opt seccomp=
--security-opt systempaths=foo
--security-opt label=level:TopSecret
--security-opt seccomp:unconfined
--restart foo:bar
--restart always:3
--health-cmd ''
--health-interval 0
--health-interval 1us
--label 'a b=c'
--label ' =c'
--sysctl net.a=b --sysctl net.a=c
--annotation =b
--log-opt x
--log-opt a=b --log-opt a=c
--storage-opt a=b
--tmpfs a:b:c
--device /dev/null:rwx
--device /dev/null:/x:rr
--device /dev/null:/dev/null:
--device :/x
--device /dev/null:x
--add-host =1.2.3.4
--add-host a:
--add-host a:::1
--add-host a:[::1]
--dns-search ''
--dns ' 1.1.1.1 '
--link ''
--blkio-weight -1
--cpus -1
--cpus 1e-3
--cpus .5
--cpus 1.
--cpus ''
--stop-timeout -1
--shm-size -1
--device-cgroup-rule 'c *:* m'
--device-cgroup-rule 'a 1:2 rwmm'
--device-cgroup-rule 'd 1:2 r'
--isolation hyperv
--group-add ''
--tmpfs ''
--hostname ''
--user ''
--entrypoint ' x y'
--env-file bad
--cpu-period 1000
--cpu-quota 0x10
--cpu-rt-period 4
--cpu-rt-runtime 5
--cpu-shares 010
--cpu-shares 0b11
--cpu-shares +5
--cpu-shares ''
""".splitlines()

# whole command lines
OUTPUT = r"""
ps
ps -a -s --no-trunc
ps -q
ps --format '{{json .}}'
ps --format json
ps --format 'table {{.ID}}\t{{.Names}}\t{{.Mounts}} {{.Networks}}\t{{.Label "a"}}'
ps --format '{{.Foo}}'
ps --format '{{'
ps --format table
ps --format raw
ps --format pretty
ps -q --format '{{.Names}}'
ps --format '{{.Names}} {{.Size}} {{.CreatedAt}} {{.LocalVolumes}} {{.State}} {{.Labels}}'
ps --format '{{if eq .State "running"}}{{upper .Names}}{{else}}-{{end}}'
ps --format '{{with .Labels}}{{.}}{{else}}none{{end}}'
ps --format '{{range split .Labels ","}}<{{.}}>{{end}}'
ps --format '{{pad .Names 2 3}}|{{truncate .ID 4}}|{{title .State}}|{{lower .Image}}|{{len .Names}}'
ps --format '{{printf "%-10s|%5s|%q" .Names .State .Image}}'
ps --format '{{/* comment */}}{{- .Names -}} x'
ps --format '{{$x := .Names}}{{$x}}{{if and .Names (not .Size)}}a{{end}}{{if or .Labels .Names}}b{{end}}{{ne .Names "web"}}'
ps --format '{{println .Names .State}}'
ps --format '{{join (split .Names "e") "-"}} {{index (split .Image ":") 0}}'
ps --format '{{.Names}'
ps --format '{{if .Names}}'
ps --format '{{end}}'
ps --format '{{nope .Names}}'
ps --format '{{.Names | upper | printf "%s!"}}'
ps --format '{{"quoted\ttab"}} {{`raw`}} {{1}} {{true}}'
ps -f x
ps x
images
images -q
images --digests
images --no-trunc
images --format json
images --format 'table {{.ID}}\t{{.CreatedAt}} {{.Size}} {{.Containers}} {{.VirtualSize}} {{.UniqueSize}} {{.SharedSize}} {{.Digest}}'
images --digests --format '{{.Repository}} {{.Digest}}'
images --format raw
images -q --no-trunc
image ls
history x
history -q x
history --no-trunc x
history -H=false x
history --format json x
history --format '{{.CreatedSince}} {{.Tags}}' x
inspect x
inspect x nope
inspect nope
inspect -f '{{.State.Status}}' x
inspect -f '{{.Foo}}' x
inspect -f '{{.State.Foo}}' x
inspect -f '{{json .Config.Env}} {{index .Config.Labels "a.b"}}' x
inspect -f '{{range $i, $e := .Config.Env}}{{$i}}={{$e}},{{end}}{{len .Mounts}}{{if .State.Running}}R{{else}}N{{end}}' x
inspect -f '{{.State.Pid}} {{.HostConfig.X}} {{.Created}} {{.Config}} {{.State.Health}}' x
inspect -f '{{' x
inspect -f json x
inspect -f '{{.State.Health.Status}}' x
inspect -f '{{println .Id}}' x
inspect -f '{{foo}}' x
inspect -f '{{if}}' x
inspect -f '{{range .Config.Env}}' x
inspect -f '{{index .Mounts 0}}' x
inspect --type image i
container inspect nope
image inspect nope
image inspect i
container foo
foo
logs x
events
events --format json
events --format '{{.Type}} {{.Actor.Attributes.name}}'
top x
rmi a:b c
wait x
wait x y
rename a b
rename a
kill -s HUP a
rm
rm -f nope
stop
start x y
start nope
rename nope x
inspect -f '{{.Foo}}' x x
inspect -f '{{.Id}}' nope
exec x sh -c 'exit 3'
exec x
attach x
start -a x
run -d img
run img
run --foo img
run -z img
run
run --name
run -d -a stdin img
info -f '{{.Name}} {{.NCPU}}'
version -f '{{.Server.Version}}'
""".strip().splitlines()

CONTAINERS = [
    {
        "Id": CONTAINER_ID, "Names": ["/web", "/other/alias"], "Image": "debian:bookworm", "ImageID": "sha256:" + "ab" * 32,
        "Command": "bash -c 'sleep 1000000000000'", "Created": NOW - 1170 * DAY, "Labels": {"b": "2", "a": "1"}, "State": "running", "Status": "Up 3 minutes",
        "Ports": [
            {"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}, {"IP": "::", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"},
            {"PrivatePort": 443, "Type": "tcp"}, {"PrivatePort": 444, "Type": "tcp"}, {"IP": "::1", "PrivatePort": 53, "PublicPort": 53, "Type": "udp"},
        ],
        "SizeRw": 1234567, "SizeRootFs": 99912345678, "HostConfig": {"NetworkMode": "bridge"}, "NetworkSettings": {"Networks": {"bridge": {}}},
        "Mounts": [{"Type": "volume", "Name": "ab" * 32, "Source": "/x", "Destination": "/d", "Driver": "local"}, {"Type": "bind", "Source": "/host", "Destination": "/d"}],
    },
    {
        "Id": "aa" * 32, "Names": ["/b"], "Image": "sha256:" + "ab" * 32, "ImageID": "sha256:" + "ab" * 32, "Command": "echo \"ü\t\\\" ü", "Created": NOW - 1170 * DAY,
        "Ports": [], "Labels": {}, "State": "exited", "Status": "Exited (0) 3 minutes ago", "HostConfig": {"NetworkMode": "none"},
        "NetworkSettings": {"Networks": {}}, "Mounts": [],
    },
    {
        "Id": "ac" * 32, "Names": ["/日本"], "Image": "localhost:5000/a/b:c@sha256:" + "cd" * 32, "ImageID": "sha256:" + "cd" * 32, "Command": "日本日本日本日本日本日本日本",
        "Created": NOW - 100 * 60, "Ports": None, "Labels": None, "State": "created", "Status": "Created", "HostConfig": {}, "NetworkSettings": None, "Mounts": None,
    },
]
IMAGES = [
    {
        "Id": "sha256:" + "cd" * 32, "RepoTags": ["debian:bookworm", "debian:12"], "RepoDigests": ["debian@sha256:" + "ee" * 32], "Created": NOW - 1170 * DAY,
        "Size": 123456789, "SharedSize": -1, "VirtualSize": 1, "Labels": {}, "Containers": -1,
    },
    {"Id": "sha256:" + "ce" * 32, "RepoTags": [], "RepoDigests": [], "Created": NOW - 65 * DAY, "Size": 1, "SharedSize": -1, "Labels": {}, "Containers": -1},
    {"Id": "sha256:" + "cf" * 32, "RepoTags": ["localhost:5000/x/y:z"], "RepoDigests": None, "Created": NOW - 9 * DAY, "Size": 999500, "SharedSize": 10, "Labels": {}, "Containers": 2},
    {"Id": "sha256:" + "c0" * 32, "RepoTags": None, "RepoDigests": ["q@sha256:" + "ef" * 32], "Created": NOW - 9 * DAY, "Size": 5000000000, "SharedSize": -1, "Labels": {}, "Containers": 0},
]
HISTORY = [
    {
        "Id": "sha256:" + "cd" * 32, "Created": NOW - 1170 * DAY, "CreatedBy": '/bin/sh -c #(nop)  CMD ["bash"] and something that is very long \t tab',
        "Tags": ["debian:12", "x:y"], "Size": 0, "Comment": "hello",
    },
    {"Id": "<missing>", "Created": NOW - 1170 * DAY, "CreatedBy": "/bin/sh -c echo", "Tags": None, "Size": 12345678, "Comment": ""},
]
INSPECTED = {
    "Id": CONTAINER_ID, "Name": "/web", "Config": {"Tty": False, "OpenStdin": True, "Env": ["A=<b>", "C\"\\"], "Labels": {"a.b": "1"}},
    "State": {"Running": True, "Paused": False, "Restarting": False, "Status": "running", "Pid": 1234567, "Health": None},
    "HostConfig": {"AutoRemove": False, "CpuShares": 0, "X": 1.5}, "Mounts": [], "Created": "2024",
}
EVENT = {
    "status": "start", "id": "ab", "from": "img", "Type": "container", "Action": "start", "Actor": {"ID": "ab", "Attributes": {"image": "i<g", "name": "n"}},
    "scope": "local", "time": 1700000000, "timeNano": 1700000000123456789,
}
TABLE = {
    "GET /containers/json": (200, CONTAINERS), "GET /images/json": (200, IMAGES), "GET /images/x/history": (200, HISTORY),
    "GET /containers/(x|[0-9a-f]{64})/json": (200, INSPECTED), "GET /images/i/json": (200, {"Id": "sha256:1", "RepoTags": ["a:b"]}),
    "GET /exec/.*/json": (200, {"ExitCode": 3}), "POST /containers/x/exec": (201, {"Id": "x"}),
    "GET /containers/.*/logs": (200, frame(1, b"hello\n") + frame(2, b"err\n")), "GET /events": (200, EVENT),
    "GET /containers/x/top": (200, {"Titles": ["PID", "CMD"], "Processes": [["1", "sleep 100 and more words"], ["22", "a"]]}),
    "POST /containers/nope/.*": (404, {"message": "No such container: nope"}),
    "DELETE /images/.*": (200, [{"Untagged": "a:b"}, {"Deleted": "sha256:ab"}]),
    "GET /info": (200, {"Name": "host", "NCPU": 2, "OSType": "linux"}), "GET /version": (200, {"Version": "0.1.0", "ApiVersion": "1.51", "Os": "linux", "Arch": "amd64"}),
}
