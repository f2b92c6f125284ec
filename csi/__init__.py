"""CSI driver `csi.modelcache.io`: talks to the agent only through `modelcache.client`."""
