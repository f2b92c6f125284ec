"""`s3://`: Amazon S3 and every server that speaks its protocol."""

from modelcache.sources.s3.source import S3Source

__all__ = ["S3Source"]
