"""`oci://`: models in OCI and Docker registries, as artifacts or as files of images."""

from modelcache.sources.oci.source import OciSource

__all__ = ["OciSource"]
