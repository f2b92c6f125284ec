"""What the faces towards Kubernetes share: names, objects, and how pods say what they want."""
