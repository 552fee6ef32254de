"""Bodies of the container endpoints as Docker's clients send and read them (Engine API 1.51). Pure data, no policy.

Every field may be null or missing, because Go clients send `null` for empty lists and maps.
"""

from __future__ import annotations

import msgspec

from engine.spec.docker.names import pascal

StrList = list[str] | None
StrMap = dict[str, str] | None


class Healthcheck(msgspec.Struct, rename=pascal, omit_defaults=True):
    """HEALTHCHECK; times in nanoseconds."""

    test: StrList = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Config(msgspec.Struct, rename=pascal):
    """The portable half of a container's configuration; also the `config` of an image."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, object]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: StrList = None
    cmd: list[str] | str | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, object]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | str | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: StrList = None
    labels: StrMap = None
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: StrList = None


class LogConfig(msgspec.Struct, rename=pascal):
    type: str = ""
    config: StrMap = None


class PortBinding(msgspec.Struct, rename={"host_ip": "HostIp", "host_port": "HostPort"}):
    host_ip: str = ""
    host_port: str = ""


class RestartPolicy(msgspec.Struct, rename=pascal):
    name: str = ""
    maximum_retry_count: int = 0


class BindOptions(msgspec.Struct, rename=pascal, omit_defaults=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class TmpfsOptions(msgspec.Struct, rename=pascal, omit_defaults=True):
    """`size_bytes` in bytes, `mode` as a number (0o1777 arrives as 1023)."""

    size_bytes: int = 0
    mode: int = 0
    options: list[list[str]] | None = None


class DriverConfig(msgspec.Struct, rename=pascal, omit_defaults=True):
    """The driver of a volume that does not exist yet, and its options."""

    name: str = ""
    options: StrMap = None


class VolumeOptions(msgspec.Struct, rename=pascal, omit_defaults=True):
    """`subpath`: a relative path within the volume; `labels` and `driver_config` are for a volume that does not exist yet."""

    no_copy: bool = False
    labels: StrMap = None
    driver_config: DriverConfig | None = None
    subpath: str = ""


class ImageOptions(msgspec.Struct, rename=pascal, omit_defaults=True):
    """`subpath`: a relative path within the image."""

    subpath: str = ""


class IdRange(msgspec.Struct, frozen=True):
    """`size` ids from `container_id` (as the files have them) are shown as `host_id` onwards. The names are those of the OCI runtime
    specification, capitalised."""

    container_id: int = msgspec.field(name="ContainerID")
    host_id: int = msgspec.field(name="HostID")
    size: int = msgspec.field(name="Size")


class MountRequest(msgspec.Struct, rename=pascal, omit_defaults=True):
    """One `--mount`. `uid_mappings`, `gid_mappings`: Knarr's own, the owners that a bind or volume shows."""

    target: str = ""
    source: str = ""
    type: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    uid_mappings: list[IdRange] | None = msgspec.field(name="UIDMappings", default=None)
    gid_mappings: list[IdRange] | None = msgspec.field(name="GIDMappings", default=None)


class DeviceMapping(msgspec.Struct, rename=pascal):
    path_on_host: str = ""
    path_in_container: str = ""
    cgroup_permissions: str = "rwm"


class WeightDevice(msgspec.Struct, rename=pascal):
    """Weight 10 to 1000 of one block device, by its path on the host."""

    path: str = ""
    weight: int = 0


class ThrottleDevice(msgspec.Struct, rename=pascal):
    """Bytes or operations per second of one block device, by its path on the host."""

    path: str = ""
    rate: int = 0


class Ulimit(msgspec.Struct, rename=pascal):
    name: str = ""
    hard: int = 0
    soft: int = 0


class HostConfig(
    msgspec.Struct,
    rename=lambda field: {
        "io_maximum_iops": "IOMaximumIOps",
        "io_maximum_bandwidth": "IOMaximumBandwidth",
        "dns": "Dns",
        "dns_options": "DnsOptions",
        "dns_search": "DnsSearch",
        "container_id_file": "ContainerIDFile",
        "blkio_device_read_iops": "BlkioDeviceReadIOps",
        "blkio_device_write_iops": "BlkioDeviceWriteIOps",
        "uts_mode": "UTSMode",
    }.get(field, pascal(field)),
):
    """The half of a container's configuration that belongs to this host, resources included."""

    binds: StrList = None
    container_id_file: str = ""
    log_config: LogConfig | None = None
    network_mode: str = ""
    port_bindings: dict[str, list[PortBinding] | None] | None = None
    restart_policy: RestartPolicy | None = None
    auto_remove: bool = False
    volume_driver: str = ""
    volumes_from: StrList = None
    console_size: tuple[int, int] | None = None
    annotations: StrMap = None
    cap_add: StrList = None
    cap_drop: StrList = None
    cgroupns_mode: str = ""
    dns: StrList = None
    dns_options: StrList = None
    dns_search: StrList = None
    extra_hosts: StrList = None
    group_add: StrList = None
    ipc_mode: str = ""
    cgroup: str = ""
    links: StrList = None
    oom_score_adj: int = 0
    pid_mode: str = ""
    privileged: bool = False
    publish_all_ports: bool = False
    readonly_rootfs: bool = False
    security_opt: StrList = None
    storage_opt: StrMap = None
    tmpfs: StrMap = None
    uts_mode: str = ""
    userns_mode: str = ""
    shm_size: int = 0
    sysctls: StrMap = None
    runtime: str = ""
    isolation: str = ""
    cpu_shares: int = 0
    memory: int = 0
    nano_cpus: int = 0
    cgroup_parent: str = ""
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] | None = None
    blkio_device_read_bps: list[ThrottleDevice] | None = None
    blkio_device_write_bps: list[ThrottleDevice] | None = None
    blkio_device_read_iops: list[ThrottleDevice] | None = None
    blkio_device_write_iops: list[ThrottleDevice] | None = None
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    devices: list[DeviceMapping] | None = None
    device_cgroup_rules: StrList = None
    device_requests: list[dict[str, object]] | None = None
    memory_reservation: int = 0
    memory_swap: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    init: bool | None = None
    pids_limit: int | None = None
    ulimits: list[Ulimit] | None = None
    cpu_count: int = 0
    cpu_percent: int = 0
    io_maximum_iops: int = 0
    io_maximum_bandwidth: int = 0
    mounts: list[MountRequest] | None = None
    masked_paths: StrList = None
    readonly_paths: StrList = None


class EndpointIPAMConfig(
    msgspec.Struct, rename={"ipv4_address": "IPv4Address", "ipv6_address": "IPv6Address", "link_local_ips": "LinkLocalIPs"}
):
    ipv4_address: str = ""
    ipv6_address: str = ""
    link_local_ips: StrList = None


class EndpointSettings(
    msgspec.Struct,
    rename=lambda field: {
        "ip_prefix_len": "IPPrefixLen",
        "ipv6_gateway": "IPv6Gateway",
        "global_ipv6_address": "GlobalIPv6Address",
        "global_ipv6_prefix_len": "GlobalIPv6PrefixLen",
        "ipam_config": "IPAMConfig",
        "ip_address": "IPAddress",
    }.get(field, pascal(field)),
):
    ipam_config: EndpointIPAMConfig | None = None
    links: StrList = None
    aliases: StrList = None
    mac_address: str = ""
    driver_opts: StrMap = None
    gw_priority: int = 0
    network_id: str = ""
    endpoint_id: str = ""
    gateway: str = ""
    ip_address: str = ""
    ip_prefix_len: int = 0
    ipv6_gateway: str = ""
    global_ipv6_address: str = ""
    global_ipv6_prefix_len: int = 0
    dns_names: StrList = None


class NetworkingConfig(msgspec.Struct, rename=pascal):
    endpoints_config: dict[str, EndpointSettings | None] | None = None


class CreateRequest(Config, rename=pascal):
    """`POST /containers/create`: a Config with two more members."""

    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None


class ExecRequest(msgspec.Struct, rename=pascal):
    """`POST /containers/{id}/exec`."""

    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    console_size: tuple[int, int] | None = None
    detach_keys: str = ""
    tty: bool = False
    env: StrList = None
    cmd: list[str] | str | None = None
    privileged: bool = False
    user: str = ""
    working_dir: str = ""
    detach: bool = False


class ExecStartRequest(msgspec.Struct, rename=pascal):
    """`POST /exec/{id}/start`."""

    detach: bool = False
    tty: bool = False
    console_size: tuple[int, int] | None = None
