//go:build tools

// Package sidecars names the programs that are built, so that go.mod stands for them too.
package sidecars

import (
	_ "github.com/kubernetes-csi/external-provisioner/v5/cmd/csi-provisioner"
)
