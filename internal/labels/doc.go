// Package labels has the SELinux labels of pods and containers.
//
// A pod gets a pair of labels (Pair), one for processes and one for files. Both
// have a level of two categories that no other pod has, so that the policy keeps
// the processes of one pod from the files of another ([Labeler.Pod]). The
// containers of a pod have the pod's labels, but for what they ask for
// themselves ([Labeler.Container]). A level is in use until every pod and container that has
// it was released ([Labeler.Release]); the engine records the pairs, and reserves their
// levels when it starts ([Labeler.Reserve]).
//
// The kernel gives what is mounted with a label that label for good. Volumes are
// labelled file by file ([Labeler.Relabel]).
package labels
