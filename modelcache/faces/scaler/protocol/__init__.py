"""KEDA's external scaler: its messages, compiled from `externalscaler.proto` by the build."""
