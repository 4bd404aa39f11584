"""Creates and renews the certificates and keys of a platform on Kubernetes."""
