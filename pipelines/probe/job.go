package probe

import (
	"context"
	"fmt"
	"maps"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/greenlight-ci/greenlight/pipelines/probe/protocol"
)

const (
	containerName = "probe"
	// labelProbe is on everything that belongs to a probe; its value is the Job's name.
	labelProbe = "greenlight.dev/probe"
	// finishedTTL is for the case that the release dies: Kubernetes removes the ended Job after it.
	finishedTTL = 5 * time.Minute
	// stopGrace is how long a stopped probe may take to write its result.
	stopGrace = 10 * time.Second
	// userID is the conventional nobody of images without a user database.
	userID = 65532
)

// create makes the Job first and the ConfigMap after it, owned by it: whatever dies in between, Kubernetes removes both.
// The pod waits for the ConfigMap.
func create(ctx context.Context, options Options) (*batchv1.Job, error) {
	job := buildJob(options, options.Name+"-"+rand.String(5))
	created, err := options.Client.BatchV1().Jobs(options.Namespace).Create(ctx, job, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("creating the Job %s/%s: %w", options.Namespace, job.Name, err)
	}
	if len(options.Files) == 0 {
		return created, nil
	}
	text, binary, _ := configMapData(options.Files)
	configMap := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: job.Name, Namespace: options.Namespace, Labels: job.Labels, OwnerReferences: []metav1.OwnerReference{{
			APIVersion: "batch/v1", Kind: "Job", Name: created.Name, UID: created.UID,
		}}},
		Data: text, BinaryData: binary, Immutable: new(true),
	}
	if _, err := options.Client.CoreV1().ConfigMaps(options.Namespace).Create(ctx, configMap, metav1.CreateOptions{}); err != nil {
		return created, fmt.Errorf("creating the ConfigMap %s/%s with the probe's files: %w", options.Namespace, job.Name, err)
	}
	return created, nil
}

func buildJob(options Options, name string) *batchv1.Job {
	labels := map[string]string{}
	maps.Copy(labels, options.Labels)
	own := map[string]string{"app.kubernetes.io/managed-by": "greenlight", labelProbe: name}
	maps.Copy(labels, own)
	var owners []metav1.OwnerReference
	if options.Owner != nil {
		owners = append(owners, *options.Owner)
	}
	deadline := int64(options.Timeout.Seconds()) + 1
	onExit := func(action batchv1.PodFailurePolicyAction, codes ...int32) batchv1.PodFailurePolicyRule {
		return batchv1.PodFailurePolicyRule{Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			ContainerName: new(containerName), Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: codes,
		}}
	}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: options.Namespace, Labels: labels, OwnerReferences: owners},
		Spec: batchv1.JobSpec{
			ActiveDeadlineSeconds:   &deadline,
			TTLSecondsAfterFinished: new(int32(finishedTTL.Seconds())),
			// A pod that is lost with its node, evicted or killed is replaced. One that says that it cannot run is not.
			BackoffLimit:         new(int32(2)),
			PodReplacementPolicy: new(batchv1.Failed),
			PodFailurePolicy: &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
				{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
					{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue},
				}},
				onExit(batchv1.PodFailurePolicyActionFailJob, 1, 2),
			}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: own},
				Spec:       buildPod(options, name),
			},
		},
	}
}

func buildPod(options Options, name string) corev1.PodSpec {
	container := corev1.Container{
		Name:            containerName,
		Image:           options.Image,
		Command:         options.Command,
		ImagePullPolicy: corev1.PullIfNotPresent,
		// No limit on CPU: a throttled probe would measure its own throttling.
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("256Mi")},
		},
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
	pod := corev1.PodSpec{
		RestartPolicy:                 corev1.RestartPolicyNever,
		AutomountServiceAccountToken:  new(false),
		EnableServiceLinks:            new(false),
		TerminationGracePeriodSeconds: new(int64(stopGrace.Seconds())),
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: new(true), RunAsUser: new(int64(userID)), RunAsGroup: new(int64(userID)),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
	}
	for _, secret := range options.ImagePullSecrets {
		pod.ImagePullSecrets = append(pod.ImagePullSecrets, corev1.LocalObjectReference{Name: secret})
	}
	if len(options.Files) > 0 {
		_, _, items := configMapData(options.Files)
		pod.Volumes = []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: name}, Items: items,
		}}}}
		container.VolumeMounts = []corev1.VolumeMount{{Name: "files", MountPath: protocol.Dir, ReadOnly: true}}
	}
	pod.Containers = []corev1.Container{container}
	return pod
}

// remove deletes the Job, its pods and the ConfigMap. What cannot be deleted is logged; Kubernetes removes it later by its deadline and TTL.
func remove(ctx context.Context, options Options, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	background := metav1.DeletePropagationBackground
	err := options.Client.BatchV1().Jobs(options.Namespace).Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &background})
	note(options.Log, ignoreGone(err), "deleting the Job %s/%s", options.Namespace, name)
	if len(options.Files) > 0 {
		err = options.Client.CoreV1().ConfigMaps(options.Namespace).Delete(ctx, name, metav1.DeleteOptions{})
		note(options.Log, ignoreGone(err), "deleting the ConfigMap %s/%s", options.Namespace, name)
	}
}
