"""Command lines about networks and ports that knarr must take as the docker CLI does, and the answers they get. Data only."""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from tests.golden.cli_fake import CONTAINER_ID, Request

IDS = [digit * 64 for digit in "abcdef"]

# whole command lines
LINES = r"""
network create n
network create -d macvlan -o parent=eth0 -o macvlan_mode=bridge n
network create --driver= n
network create --subnet 10.1.0.0/16 n
network create --subnet 10.1.0.0/16,10.2.0.0/16 n
network create --subnet 10.1.0.0/16 --subnet fd00::/64 --gateway 10.1.0.1 --gateway fd00::1 --ip-range 10.1.5.0/24 n
network create --subnet 10.1.0.0/16 --aux-address a=10.1.0.7 --aux-address b=10.1.0.8 n
network create --subnet 10.1.0.0/16 --aux-address a n
network create --subnet 10.1.0.0/16 --aux-address a=10.2.0.7 n
network create --subnet 10.1.0.0/16 --aux-address a=x n
network create --aux-address a=10.1.0.7 n
network create --gateway 10.1.0.1 n
network create --ip-range 10.1.0.0/24 n
network create --subnet 10.1.0.0/16 --gateway 10.2.0.1 n
network create --subnet 10.1.0.0/16 --gateway x n
network create --subnet 10.1.0.0/16 --gateway 10.1.0.1/24 n
network create --subnet 10.1.0.0/16 --gateway 10.1.0.1 --gateway 10.1.0.2 n
network create --subnet 10.1.0.0/16 --subnet 10.2.0.0/16 --gateway 10.1.0.1 --gateway 10.1.0.2 n
network create --subnet 10.1.0.0/16 --ip-range 10.2.0.0/24 n
network create --subnet 10.1.0.0/16 --ip-range x n
network create --subnet 10.1.0.0/16 --ip-range x/y n
network create --subnet 10.1.0.0/16 --ip-range 10.1.5.0 n
network create --subnet 10.1.0.0/16 --subnet 10.2.0.0/16 --ip-range 10.1.5.0/24 --ip-range 10.1.6.0/24 n
network create --subnet 10.1.0.0/16 --subnet 10.1.5.0/24 n
network create --subnet 10.1.5.0/24 --subnet 10.1.0.0/16 n
network create --subnet x n
network create --subnet x --subnet y n
network create --subnet x --gateway 10.0.0.1 n
network create --subnet 10.1.0.0 --gateway 10.1.0.1 n
network create --subnet 10.1.0.0/33 --gateway 10.1.0.1 n
network create --subnet 10.1.3.0/16 --gateway 10.1.0.1 n
network create --subnet= n
network create --internal --attachable --label a=b --label c --label a=d n
network create --label =x n
network create --label 'a b=c' n
network create --ipv6 n
network create --ipv6=false --ipv4=false n
network create --ipv4 n
network create --config-only n
network create --config-from c n
network create --ingress n
network create --scope swarm n
network create --ipam-driver d --ipam-opt a=b --ipam-opt c n
network create -o a=b -o a=c -o d n
network create -o com.docker.network.bridge.name=br7 --opt com.docker.network.driver.mtu=1400 n
network create
network create a b
network create --foo n
network create warn
network create taken
network ls
network list
network ls -q
network ls --no-trunc
network ls -q --no-trunc
network ls -f driver=bridge -f name=x -f name=y -f driver=bridge
network ls -f dangling=true
network ls -f x
network ls --filter NAME=x
network ls --format json
network ls --format '{{json .}}'
network ls --format raw
network ls --format table
network ls --format '{{.Name}} {{.ID}} {{.Driver}} {{.Scope}} {{.IPv4}} {{.IPv6}} {{.Internal}} {{.Labels}} {{.CreatedAt}}'
network ls --format 'table {{.Name}}\t{{.IPv4}}\t{{.IPv6}}\t{{.Internal}}\t{{.Labels}}\t{{.Label "com.x-y"}}\t{{.CreatedAt}}\t{{.Scope}}'
network ls --format '{{.Foo}}'
network ls --format '{{'
network ls -q --format '{{.Name}}'
network ls x
network inspect n1
network inspect n1 n2
network inspect n1 nope
network inspect nope
network inspect -v n1
network inspect --verbose=false n1
network inspect -f '{{.Name}} {{.Id}} {{.IPAM.Driver}}' n1
network inspect -f '{{range .IPAM.Config}}{{.Subnet}}{{end}} {{json .Containers}}' n1
network inspect -f json n1
network inspect -f '{{.Foo}}' n1
network inspect -f '{{' n1
network inspect
network rm n1
network rm n1 n2
network remove n1
network rm nope
network rm n1 nope busy n2
network rm -f nope n1
network rm -f busy
network rm
network connect n c
network connect --ip 1.2.3.4 --ip6 fd00::5 --alias a --alias b,c --link d:e --link f --link-local-ip 169.254.1.1 n c
network connect --driver-opt a=b --driver-opt c=d --gw-priority 5 n c
network connect --gw-priority -5 n c
network connect --gw-priority x n c
network connect --driver-opt a n c
network connect --driver-opt =a n c
network connect --driver-opt a= n c
network connect --ip x n c
network connect --ip= --alias= n c
network connect --link a:b:c n c
network connect --link '' n c
network connect n
network connect n nope
network disconnect n c
network disconnect -f n c
network disconnect n
network disconnect n nope
network prune -f
network prune -f --filter until=24h --filter label=a --filter label!=b
network prune -f --filter x
network prune --force x
network prune
network foo
port web
port web 80
port web 80/tcp
port web 80/udp
port web 53/udp
port web 443
port web 1
port web x
port web 80/foo
port web 99999
port web ''
port web 80-81
port none
port nope
port
port web 80 tcp
container port web
inspect n1
inspect --type network n1
inspect --type network nope
inspect --type volume v1
inspect v1
inspect -f '{{.Driver}}' n1 v1
system prune -f
""".strip().splitlines()

# arguments of `create`, before IMAGE COMMAND
CREATE = """\
-p 80-82
-p 80-82/udp
-p 8000-8002:80-82/sctp
-p 127.0.0.1:8000-8002:80-82
-p 127.0.0.1::80-82
-p [::1]:8000-8001:80-81
-p [fd00::1]::80
-p [::]:80:80
-p ::80:80
-p :::80
-p fd00::1:80:80
-p 0.0.0.0:80:80
-p 127.0.0.1:80
-p 127.0.0.1:
-p 127.0.0.1:80:
-p [127.0.0.1]:80:80
-p [x]:80:80
-p host:80:80
-p 80/TCP
-p 80/tcp/udp
-p 80:80/
-p ' 80'
-p 80:80 -p 80:80
-p 80:80/tcp -p 80:80/udp
-p 127.0.0.1:80:80 -p [::1]:80:80
-p 0:80
-p 80:0
-p 65535:65535
-p 65536:80
-p 80:65536
-p 1-3:80
-p 80-80:80
-p 81-80:80
-p 80-82:80-81
-p 80-81:80-82
-p a-b:80
-p 80:a-b
-p 80-:80
-p -80:80
-p published=80-82,target=80-82
-p published=127.0.0.1:80,target=80
-p target=80,published=
-p target=80,protocol=sctp
-p target=80,protocol=foo
-p target=80,mode=ingress
-p target=80,mode=foo
-p target=80,foo=bar
-p target=80,published
-p published=80
-p Target=80,Published=81
-p target=80,published=80 -p 81:81
-P --expose 80-82 --expose 53/udp
--expose 80/tcp --expose 80
--expose 80-82/udp
--expose 80/TCP
--expose 82-80
--expose 0
--expose 65536
--expose 80:80
--expose /tcp
-p 80:80 --expose 80 --expose 81
--network foo --network bar --network baz
--network name=foo --network name=bar,alias=x
--network name=foo,name=bar
--network name=foo,alias=a,alias=b
--network name=foo,ip=1.2.3.4,ip6=fd00::1
--network name=foo,ip=x
--network name=foo,ip6=1.2.3.4
--network name=foo,ip=
--network name=foo,mac-address=zz
--network name=foo,mac-address=02:42:ac:11:00:02
--network name=foo,link-local-ip=169.254.1.1,link-local-ip=169.254.1.2
--network name=foo,link-local-ip=x
--network name=foo,driver-opt=a=b,driver-opt=c=d
--network name=foo,driver-opt=a
--network name=foo,driver-opt==b
--network name=foo,driver-opt=
--network name=foo,driver-opt=A=B
--network 'name=foo,"driver-opt=a=b,c"'
--network name=foo,gw-priority=-3
--network name=foo,gw-priority=3 --network name=bar,gw-priority=4
--network name=foo,gw-priority=0x10
--network name=foo,gw-priority=
--network NAME=foo,ALIAS=A
--network ' name = foo , alias = a '
--network name=
--network name
--network =foo
--network ''
--network name=host
--network name=bridge,ip=1.2.3.4
--network name=bridge,alias=a
--network name=host,alias=a
--network name=default,alias=a
--network name=foo,foo=bar
--network host --network none
--network host --network host
--network none --network foo
--network container:x --network foo
--network foo --network container:x
--network foo --network default
--network bridge --network default
--network host -p 80:80
--network none -p 80:80
--network container:x -p 80:80
--network container:x --expose 80
--network container:x --hostname h
--network container:x --dns 1.1.1.1
--network container:x --add-host a:1.2.3.4
--network container:x --mac-address 02:42:ac:11:00:02
--network host --hostname h
--network container:
--network foo --ip 1.2.3.4 --ip6 fd00::1 --link-local-ip 169.254.1.1 --network-alias a --link c:d --mac-address 02:42:ac:11:00:02
--network name=foo,ip6=fd00::1 --ip6 fd00::2
--network name=foo,mac-address=02:42:ac:11:00:02 --mac-address 02:42:ac:11:00:03
--network name=foo,link-local-ip=169.254.1.1 --link-local-ip 169.254.1.2
--network name=foo,ip=1.2.3.4 --ip6 fd00::2
--network foo --network bar --ip 1.2.3.4
--network foo --network bar --mac-address 02:42:ac:11:00:02
--network foo --network bar --link a:b
--network bar --network foo --network-alias x
--ip x --network foo
--ip6 x --network foo
--ip 1.2.3.4 --network none
--ip fd00::1 --network foo
--ip6 1.2.3.4 --network foo
--mac-address 02:42:ac:11:00:02 --network host
--mac-address 02-42-ac-11-00-02
--mac-address 0242.ac11.0002
--mac-address 02:42:ac:11:00
--mac-address ''
--link-local-ip x
--link-local-ip 169.254.1.1
--link a:b --link c
--link a:b --network bridge
--link a:b --network host
--link :b
--link a:
--network-alias a --network-alias a --network foo
--network-alias '' --network foo
--dns 1.1.1.1 --dns 8.8.8.8 --dns ::1
--dns [::1]
--dns 1.2.3
--dns ''
--dns-search a.b --dns-search c
--dns-search a_b
--dns-search '.a'
--dns-search 1.2
--dns-option ndots:2 --dns-option timeout:1
--dns-option ''
--add-host a:1.2.3.4 --add-host b:::1 --add-host c=::1
--add-host a:[::1]
--add-host a=[::1]
--add-host a:[1.2.3.4]
--add-host a=[1.2.3.4
--add-host a:::1:2
--add-host a=b:1.2.3.4
--add-host a=host-gateway --add-host b:host-gateway
--add-host a:HOST-GATEWAY
--add-host a
--add-host :1.2.3.4
--add-host a=
--add-host ''
--add-host 'a b:1.2.3.4'
--add-host [::1]=1.2.3.4
--hostname h --domainname d.e
--hostname h.d.e
--hostname -h
--hostname a_b
-h h --net foo --net-alias a
--domainname ''
""".splitlines()

NETWORKS = [
    {"Name": "n10", "Id": IDS[0], "Created": "2024-05-01T10:00:00.123456789Z", "Scope": "local", "Driver": "bridge", "EnableIPv4": True, "EnableIPv6": True,
     "IPAM": {"Driver": "default", "Options": None, "Config": [{"Subnet": "10.1.0.0/16", "Gateway": "10.1.0.1"}]}, "Internal": True, "Attachable": False,
     "Ingress": False, "ConfigFrom": {"Network": ""}, "ConfigOnly": False, "Containers": {}, "Options": {}, "Labels": {"com.x-y": "z"}},
    {"Name": "n2", "Id": IDS[1], "Created": "2024-05-01T10:00:00Z", "Scope": "local", "Driver": "macvlan", "EnableIPv4": True, "EnableIPv6": False,
     "IPAM": {"Driver": "default", "Options": None, "Config": []}, "Internal": False, "Labels": {}},
    {"Name": "bridge", "Id": IDS[2], "Created": "2024-05-01T10:00:00.5Z", "Scope": "local", "Driver": "bridge", "EnableIPv6": False, "IPAM": {}, "Labels": None},
    {"Name": "n2a", "Id": IDS[3], "Created": "2024-05-01T10:00:00.5Z", "Scope": "local", "Driver": "bridge", "EnableIPv6": False, "IPAM": {}, "Labels": None},
    {"Name": "n02", "Id": IDS[4], "Created": "2024-05-01T10:00:00.5Z", "Scope": "local", "Driver": "bridge", "EnableIPv6": False, "IPAM": {}, "Labels": None},
]  # fmt: skip
PORTS: dict[str, Any] = {
    "80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
    "443/tcp": None,
    "9/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9999"}],
    "53/udp": [{"HostIp": "0.0.0.0", "HostPort": "53"}],
}


def container(ports: dict[str, Any]) -> dict[str, Any]:
    return {
        "Id": CONTAINER_ID, "Name": "/web", "Config": {"Tty": False}, "State": {"Running": True, "Status": "running"}, "HostConfig": {},
        "NetworkSettings": {"Ports": ports, "Networks": {}},
    }  # fmt: skip


def created(request: Request) -> tuple[int, object]:
    body: Any = request["body"]
    if body["Name"] == "taken":
        return 409, {"message": "network with name taken already exists"}
    return 201, {"Id": IDS[0], "Warning": "careful" if body["Name"] == "warn" else ""}


def joined(request: Request) -> tuple[int, object]:
    body: Any = request["body"]
    return (404, {"message": "No such container: nope"}) if body["Container"] == "nope" else (200, None)


TABLE: dict[str, Any] = {
    "GET /networks": (200, NETWORKS),
    "GET /networks/n1": (200, NETWORKS[0]),
    "GET /networks/n2": (200, NETWORKS[1]),
    "GET /networks/.*": (404, {"message": "network nope not found"}),
    "POST /networks/create": created,
    "POST /networks/n/(dis)?connect": joined,
    "POST /networks/prune": (200, {"NetworksDeleted": ["n1", "n2"]}),
    "DELETE /networks/n[12]": (204, None),
    "DELETE /networks/busy": (403, {"message": "error while removing network: network busy has active endpoints"}),
    "DELETE /networks/.*": (404, {"message": "network nope not found"}),
    "GET /containers/web/json": (200, container(PORTS)),
    "GET /containers/none/json": (200, container({})),
    "GET /volumes/v1": (200, {"Name": "v1", "Driver": "local", "Mountpoint": "/v"}),
    "GET /volumes/.*": (404, {"message": "get nope: no such volume"}),
    "GET /containers/.*": (404, {"message": "No such container: nope"}),
    "POST /containers/prune": (200, {"ContainersDeleted": None, "SpaceReclaimed": 0}),
    "POST /images/prune": (200, {"ImagesDeleted": None, "SpaceReclaimed": 0}),
    "POST /build/prune": (200, {"CachesDeleted": None, "SpaceReclaimed": 0}),
}
