"""The Container Storage Interface's messages, compiled from `csi.proto` by the build."""
