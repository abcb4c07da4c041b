"""Every key of the extra config, and every variable, that SGLang's backend for NIXL or HiCache itself reads.

Each is taken, left to the server, or refused with what to do instead; ``docs/options.md`` is this table.  A test compares
it with the sources of the releases, so one that a later release adds is not ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

PLUGIN_VARIABLE = "SGLANG_HICACHE_NIXL_BACKEND_PLUGIN"
STORAGE_DIR_VARIABLE = "SGLANG_HICACHE_NIXL_BACKEND_STORAGE_DIR"
DIRECT_IO_VARIABLE = "SGLANG_HICACHE_NIXL_USE_DIRECT_IO"
BUCKET_VARIABLE = "AWS_DEFAULT_BUCKET"
CREDENTIAL_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)  # read by the clients of AWS
# What is read for a parameter of OBJ that is not given.
OBJECT_VARIABLES = {
    "bucket": (BUCKET_VARIABLE,),
    "endpoint_override": ("AWS_ENDPOINT_OVERRIDE", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "ca_bundle": ("AWS_CA_BUNDLE", "SSL_CERT_FILE"),
}

OWN = {
    "lifetime": "how pages are stored: `leaky`, `try_finally`, `scoped` (default) or `pooled`",
    "allow_shared_folder": "use a storage folder to which other users can write",
    "sync": "`scoped`: after a power cut, a page is whole or missing",
    "capacity_gb": "`pooled`: GiB of the store; with OBJ, of each host pool of one model and rank",
    "min_free_gb": "`pooled`: GiB of the file system that stay free; not with OBJ",
    "segment_mb": "`pooled`: MiB of a segment; with OBJ, of an object, 4 by default",
    "object_timeout": "`scoped` and `pooled` with OBJ: seconds without any answer of the object store after which a call fails; default 10",
    "metrics": "count pages, bytes, hits, misses, failures, times and what is open, for Prometheus; default false",
    "metrics_port": "also serve them on 127.0.0.1, at this port plus the rank of tensor parallelism; 0 for any port",
    "verify": '`pooled`: `"checksum"` or `"none"`',
}
PARAMS = {
    "active": "the first plugin that is active is used",
    "queue": "`libaio`, `io_uring` or `posix_aio`: one name for the three flags below",
    "use_aio": "libaio",
    "use_uring": "io_uring",
    "use_posix_aio": "POSIX AIO",
    "ios_pool_size": "as in NIXL",
    "kernel_queue_size": "as in NIXL",
}
TAKEN = {
    "plugin": "a section for each plugin of NIXL; those of other plugins than POSIX are passed on as they are",
    "use_direct_io": "bypass the page cache; the default is false, in SGLang true",
    "file_storage_path": "the storage folder, which `--file-storage-path` of the server sets, too",
    "l3_cleaner_enabled": "false, except with `pooled`; true with `pooled`, which drops its oldest pages",
}
INTERFACE_V1 = "set it to 1; without it SGLang stores pages as values, and then never finds them"
SERVER = {
    "backend_name": "read by the loader",
    "module_path": "read by the loader",
    "class_name": "read by the loader",
    "interface_v1": INTERFACE_V1,
    "prefetch_threshold": "read by the cache",
    "prefetch_timeout_base": "read by the cache",
    "prefetch_timeout_per_ki_token": "read by the cache",
    "prefetch_timeout_max": "read by the cache of 0.5.12 and 0.5.13",
    "hicache_storage_pass_prefix_keys": "read by the cache; the connector does not need the prefix",
    "tp_lcm_size": "read by the controller, which passes it on as a field of its own",
    "allocator": "read by the host pool",
}
_CAPACITY = "use lifetime pooled, with capacity_gb and min_free_gb in GiB in place of percentages of the disk"
REFUSED = {
    "l3_cleaner_enabled": f"only pooled drops old pages by itself; {_CAPACITY}, or set it to false",
    "l3_cleaner_high_watermark": f"there is no cleaner; {_CAPACITY}",
    "l3_cleaner_low_watermark": f"there is no cleaner; {_CAPACITY}",
}
ALWAYS_BOUNDED = "pooled always keeps to its capacity; omit it and set capacity_gb, or use lifetime scoped"
SEVERAL_FOLDERS = "a store is in one folder; name one, and join disks below the file system (RAID 0, LVM)"
VARIABLES = {
    PLUGIN_VARIABLE: "the plugin, for an extra config without `plugin`",
    STORAGE_DIR_VARIABLE: f"the storage folder, before `file_storage_path`; several are refused: {SEVERAL_FOLDERS}",
    DIRECT_IO_VARIABLE: "`use_direct_io`, for an extra config without it",
    BUCKET_VARIABLE: "the bucket, for an extra config without it",
}


def table() -> Iterator[str]:
    """Yield the lines of the table in ``docs/options.md``."""
    yield "| option | answer | meaning, or what to do instead |"
    yield "| --- | --- | --- |"
    for where, answer, rows in (
        ("", "taken, an addition", OWN),
        ("", "taken", TAKEN),
        ("in a section, or flat: ", "taken", PARAMS),
        ("", "for the server", SERVER),
        ("", "refused", REFUSED),
        ("variable ", "taken", VARIABLES),
    ):
        for name, meaning in rows.items():
            yield f"| {where}`{name}` | {answer} | {meaning} |"
