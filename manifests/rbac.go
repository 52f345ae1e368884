package manifests

// Permissions say who is allowed to release into which namespace.
type Permissions struct {
	// Namespace holds the service and the account.
	Namespace string
	// Account is the name of the ServiceAccount that releases. Default greenlight.
	Account string
	// Secrets are the names of the Secrets that the pods name; preflight may read them, and no others. Default: none,
	// and preflight says that it did not look.
	Secrets []string
}

// RenderRBAC returns the YAML of the ServiceAccount, Role, ClusterRole and bindings that a release needs, for a cluster
// administrator to apply.
func RenderRBAC(p Permissions) ([]byte, error) {
	if p.Account == "" {
		p.Account = "greenlight"
	}
	return RenderText(Files, RBAC, map[string]any{
		"Namespace": p.Namespace, "Account": p.Account, "Secrets": p.Secrets,
		// Cluster-wide names must differ between namespaces.
		"ClusterBinding": "greenlight-capacity-" + p.Namespace + "-" + p.Account,
	})
}
