"""The site template that `template init` writes. Pure."""

from __future__ import annotations

from orchestrator.templates.template import API

_TEXT = """\
{{# qvl-template api={api} #}}
{{# The batch file of every Slurm job of this site. It extends the one that ships with
   qvl-orchestrate: what you do not override stays as it is, and follows new versions.
   After each change: qvl-orchestrate template check

   In #SBATCH lines write a value with the filter directive, in comments with the filter
   comment. Anywhere else it becomes one word of the shell, whatever it holds: put no quotes
   round it. `qvl-orchestrate template show --values` lists what there is. #}}
{{% extends "slurm/train.sbatch.j2" %}}

{{# directives: further #SBATCH lines. super() is what ours has in this place; keep it. #}}
{{% block directives %}}
{{{{ super() -}}}}
{{# #SBATCH --mail-type=FAIL #}}
{{% endblock %}}

{{# setup: runs once, on the first node, before the start. Modules and plain lines of shell
   need no template: slurm.modules and slurm.setup in site.yaml. To refuse a start for good:
   exit 78 in an if. #}}
{{% block setup %}}
{{{{ super() -}}}}
{{# export NCCL_SOCKET_IFNAME=ib0 #}}
{{% endblock %}}

{{# launch: the srun that starts an agent on each node. A container needs no template either:
   slurm.container in site.yaml. #}}

{{# teardown: after the end of an attempt, and after the requeue was asked for. Keep it short:
   Slurm kills the job soon after a preemption. #}}
{{% block teardown %}}
{{{{ super() -}}}}
{{% endblock %}}
"""


def starter_text() -> str:
    """A commented template that extends ours and changes nothing yet."""
    return _TEXT.format(api=API)
