"""The admission webhook: pods with an annotation get their models as volumes.

`mutation` decides and touches nothing; `review` speaks the API server's protocol; `warmth` knows
which nodes have what; `app` and `serving` answer over HTTPS with certificates of `tls`, which come
from files or from `shared`; `life` is all of it together. It keeps no state but a Secret, so any
number of it may run.
"""
